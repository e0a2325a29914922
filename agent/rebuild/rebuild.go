// Package rebuild keeps a cluster from depending on its etcd for ever: it copies what etcd holds to the bucket at intervals ([Copier]), notices an etcd that is older than
// the newest copy ([Compare]), and builds etcd's state anew from the newest copy and what was flushed since ([Restore]).
//
//	etcd --Copier--> copies/...                          every minute
//	                 copies/ + segments/ + manifests/ --Restore--> etcd
//
// DESIGN.md has the rules by which it is decided what was committed after the newest copy.
package rebuild

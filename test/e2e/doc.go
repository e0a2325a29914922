// Package e2e holds tests of the varve program as its users run it: as a process, with flags and signals, with etcd and
// object stores beside it, and with Kafka clients in front.
package e2e

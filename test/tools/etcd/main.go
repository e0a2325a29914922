// Command etcd is the etcd server, built from this module because its own module cannot be installed with
// "go install" (it has replace directives).
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }

// Package lab stands up a small data center in network namespaces, with real
// servers under real load, and takes it down again without a trace.
//
// Two hosts, h1 and h2, each a namespace with a bridge, are joined by a wire
// (one Ethernet for all workloads) and by a separate link for management. Each
// workload is a namespace of its own, and its host holds the other end of its
// veth as a port of the bridge: nothing but that end is there to enforce on.
// nginx, an API in Go, PostgreSQL and Redis are a shop; a client keeps load on
// it; red is where an attacker sits. The table is in topology.go.
//
// It promises that everything it makes can be found again by the lab's name
// alone, so that [Down] works after any crash, and that [Snapshot.Residue] says
// what is left. It never touches a link, route or sysctl outside the namespaces
// that it made, opens no port outside them, and reaches no network.
//
// The package is for demonstrations and tests: it runs servers with durability
// switched off and passwords that everybody knows.
package lab

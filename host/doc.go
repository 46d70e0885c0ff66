// Package host is what Linux does for the other rooms: network namespaces,
// links, addresses, routes, processes inside namespaces, sysctls, and the
// question whether this kernel can carry the system at all.
//
// Everything is done by system calls and netlink, never by running a tool, so
// that an error says what the kernel said. Namespaces are the named ones of
// iproute2 (/run/netns/NAME): whatever is made here can be looked at with
// "ip netns", and the other way round. Deleting what is absent is no error,
// creating what is there is one (it wraps [os.ErrExist]).
//
// Where a function takes a namespace, "" is the one that the calling thread is
// in, which is the process's own unless the call is made under [In].
//
// The package keeps no state, starts nothing that outlives a call except what
// [Start] is told to, and never changes a link, route or sysctl that its caller
// did not name.
package host

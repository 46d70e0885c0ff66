// Package container reads from outside which containers run on this host: from
// the Docker-compatible socket of dockerd or podman.
//
// It only reads (GET requests of seven paths, see Paths), so a proxy that lets
// nothing else through is enough. What a socket answers is foreign input: sizes,
// counts and times are bounded, what cannot be read is an error, and nothing that
// it says is used as a path of this host but the one that names a sandbox, which
// its reader checks (see host.OpenSandbox).
//
// The package keeps no state beyond a Runtime, decides nothing about what the
// containers may do, and knows nothing of links.
package container

import (
	"net/netip"
)

// Container is one container as its runtime describes it.
type Container struct {
	ID   string // 64 hexadecimal digits
	Name string
	// Image is the name that it was started with, ImageID what that was at the time.
	Image, ImageID string
	Labels         map[string]string
	// Running says that its process runs; one that does not is about to, since those
	// that have ended are left out. Its network may be there before.
	Running bool
	Pid     int
	// Sandbox is the file of its network namespace; empty: only Pid leads there.
	Sandbox string
	// Mode is how it is connected: "host", "none", "container:ID", else the name of
	// a network or of a way of connecting that has no network.
	Mode     string
	Networks []Attachment // by name
	// Pod is the ID of the podman pod that it belongs to.
	Pod string
}

// Attachment is one interface of a container.
type Attachment struct {
	Network   string // its name
	NetworkID string
	MAC       string
	Addresses []netip.Addr
}

// Shares returns the container whose network this one uses; empty: its own.
func (c *Container) Shares() string {
	const prefix = "container:"
	if len(c.Mode) > len(prefix) && c.Mode[:len(prefix)] == prefix {
		return c.Mode[len(prefix):]
	}
	return ""
}

// Network is one network of a runtime.
type Network struct {
	ID, Name string
	Driver   string // bridge, macvlan, ipvlan, host, null, ...
	// Bridge is the host's link that containers are joined by; empty if none is.
	Bridge string
	Labels map[string]string
}

// Pod is a set of containers that share one network.
type Pod struct {
	ID, Name string
	Infra    string // the container that holds the network
	Labels   map[string]string
}

// Inventory is everything that a runtime has. It is never changed once it is
// given away.
type Inventory struct {
	// Product is "docker" or "podman".
	Product    string
	Containers []Container // by ID
	Networks   []Network   // by name
	Pods       []Pod       // by ID
	// Left counts containers that were left out: damaged answers, and those beyond
	// the bounds.
	Left int
}

// Bounds on what is taken from a socket.
const (
	mostContainers = 1 << 14
	mostNetworks   = 1 << 12
	mostPods       = 1 << 14
	mostLabels     = 1 << 10 // of one container
	mostAttached   = 64      // networks of one container
	mostText       = 1 << 12 // bytes of a name or a label's value
	mostList       = 64 << 20
	mostObject     = 8 << 20
	mostEvent      = 1 << 20
)

// Paths are those that a read-only proxy has to let through, with GET alone; {id}
// stands for one element. The last two are podman's.
func Paths() []string {
	return []string{"/version", "/containers/json", "/containers/{id}/json", "/networks", "/events",
		"/v4.0.0/libpod/networks/json", "/v4.0.0/libpod/pods/json"}
}

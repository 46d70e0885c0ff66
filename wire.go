package bocage

import (
	"fmt"
	"regexp"
	"slices"
)

// Wire is an enforcement point inline on a cable: two interfaces of a host that
// frames pass between, and nobody else's. The host has no address on it. What is
// to be protected is at the Inside: the workloads of the host whose
// spec.interface is the wire's name. Whatever else sends from there has no
// identity.
type Wire struct {
	// Name is unique on the host.
	Name string `json:"name"`
	// Host is that of the interfaces; empty in a Host's own spec.
	Host string `json:"host,omitempty"`
	// Inside and Outside are the interfaces. Frames keep their VLAN tags.
	Inside  string `json:"inside"`
	Outside string `json:"outside"`
	// Forwarding is how frames get from one to the other: stack, or nothing, through
	// the kernel's network stack, which any interface can; xdp in the interfaces'
	// drivers, which both must support, for what is of a known flow or refused.
	Forwarding Forwarding `json:"forwarding,omitempty"`
}

// Forwarding is how frames cross a wire.
type Forwarding string

// Ways across a wire.
const (
	ForwardingStack Forwarding = "stack"
	ForwardingXDP   Forwarding = "xdp"
)

var interfaceName = regexp.MustCompile(`^[^\s/:]{1,15}$`)

func validateWires(wires []Wire) Faults {
	var faults Faults
	var names, used []string
	for i, w := range wires {
		at := fmt.Sprintf("spec.wires[%d]", i)
		if !interfaceName.MatchString(w.Name) {
			faults.Add(at+".name", "%q is not a name of 1 to 15 characters without spaces, slashes and colons", w.Name)
		} else if slices.Contains(names, w.Name) {
			faults.Add(at+".name", "%q is another wire's name too", w.Name)
		}
		names = append(names, w.Name)
		if w.Forwarding != "" && w.Forwarding != ForwardingStack && w.Forwarding != ForwardingXDP {
			faults.Add(at+".forwarding", "%q is neither %s nor %s", w.Forwarding, ForwardingStack, ForwardingXDP)
		}
		if w.Host != "" {
			faults.Add(at+".host", "is not to be said here: a wire is on the host that declares it")
		}
		for _, end := range []struct{ field, name string }{{".inside", w.Inside}, {".outside", w.Outside}} {
			switch {
			case !interfaceName.MatchString(end.name):
				faults.Add(at+end.field, "%q is not an interface's name", end.name)
			case slices.Contains(used, end.name):
				faults.Add(at+end.field, "%q is an end of a wire already", end.name)
			}
			used = append(used, end.name)
		}
	}
	return faults
}

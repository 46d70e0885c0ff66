package bocage

import (
	"strings"
	"testing"
)

func TestWiresAreValidated(t *testing.T) {
	for _, c := range []struct {
		what   string
		wires  []Wire
		faults []string // what the messages contain, in order
	}{
		{"none", nil, nil},
		{"two", []Wire{{Name: "dmz", Inside: "eth1", Outside: "eth2"}, {Name: "lab", Inside: "eth3", Outside: "eth4"}}, nil},
		{"one interface", []Wire{{Name: "dmz", Inside: "eth1", Outside: "eth1"}}, []string{"wires[0].outside"}},
		{"shared", []Wire{{Name: "dmz", Inside: "eth1", Outside: "eth2"}, {Name: "dmz", Inside: "eth2", Outside: "eth3"}},
			[]string{"wires[1].name", "wires[1].inside"}},
		{"names", []Wire{{Name: "a b", Inside: "", Outside: "sixteen-letters!"}}, []string{"wires[0].name", "wires[0].inside", "wires[0].outside"}},
		{"forwarding", []Wire{{Name: "dmz", Inside: "eth1", Outside: "eth2", Forwarding: "xdp"}, {Name: "lab", Inside: "eth3", Outside: "eth4", Forwarding: "stack"},
			{Name: "old", Inside: "eth5", Outside: "eth6", Forwarding: "tcx"}}, []string{"wires[2].forwarding"}},
		{"a host", []Wire{{Name: "dmz", Host: "h2", Inside: "eth1", Outside: "eth2"}}, []string{"wires[0].host"}},
	} {
		h := Host{ObjectMeta: ObjectMeta{Name: "h1"}, Spec: HostSpec{Wires: c.wires}}
		faults := h.Validate()
		if len(faults) != len(c.faults) {
			t.Errorf("%s: %v, want %v", c.what, faults, c.faults)
			continue
		}
		for i, want := range c.faults {
			if !strings.Contains(faults[i].Field, want) {
				t.Errorf("%s: %v, want %q", c.what, faults[i], want)
			}
		}
	}
}

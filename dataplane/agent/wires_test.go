package agent

import (
	"context"
	"reflect"
	"testing"
	"testing/synctest"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

func (f *fake) AttachWire(w dataplane.Wire) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wires = append(f.wires, w)
	return nil
}

func (f *fake) DetachWire(inside uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []dataplane.Wire
	for _, w := range f.wires {
		if w.Inside != inside {
			left = append(left, w)
		}
	}
	f.wires = left
	return nil
}

func (f *fake) Wires() []dataplane.Wire {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wires
}

var (
	cable = []host.Link{{Index: 4, Name: "eth1"}, {Index: 5, Name: "eth2"}, {Index: 6, Name: "br0"}, {Index: 7, Name: "web", Ethernet: true}}
	dmz   = bocage.Wire{Name: "dmz", Host: "h1", Inside: "eth1", Outside: "eth2"}
)

func TestFoldWires(t *testing.T) {
	web, db, vm := port("dmz", 101), port("dmz", 102), port("web", 103)
	fast := dmz
	fast.Forwarding = bocage.ForwardingXDP
	for _, c := range []struct {
		what    string
		ruleset *bocage.Ruleset
		links   []host.Link
		want    Wanted
	}{
		{"residents are not looked for as interfaces", &bocage.Ruleset{Wires: []bocage.Wire{dmz}, Ports: []bocage.Port{web, db, vm}}, cable,
			Wanted{Wires: []dataplane.Wire{{Name: "dmz", Inside: 4, Outside: 5, Residents: []bocage.Port{web, db}}},
				Attachments: []dataplane.Attachment{{Ifindex: 7, Port: vm}}}},
		{"strict where a resident enforces", &bocage.Ruleset{Wires: []bocage.Wire{dmz}, Ports: []bocage.Port{web}, Groups: []bocage.GroupInfo{{Group: 20, Enforce: true}}}, cable,
			Wanted{Wires: []dataplane.Wire{{Name: "dmz", Inside: 4, Outside: 5, Closed: true, Residents: []bocage.Port{web}}}}},
		{"forwarded by drivers", &bocage.Ruleset{Wires: []bocage.Wire{fast}}, cable,
			Wanted{Wires: []dataplane.Wire{{Name: "dmz", Inside: 4, Outside: 5, Drivers: true}}}},
		{"nobody at the inside", &bocage.Ruleset{Wires: []bocage.Wire{dmz}}, cable,
			Wanted{Wires: []dataplane.Wire{{Name: "dmz", Inside: 4, Outside: 5}}}},
		{"an interface is gone", &bocage.Ruleset{Wires: []bocage.Wire{dmz}, Ports: []bocage.Port{web}}, cable[1:],
			Wanted{Cut: []bocage.Wire{dmz}}},
	} {
		if got := Fold(Scene{Ruleset: c.ruleset, Links: c.links}); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.what, got, c.want)
		}
	}
}

// Wires come and go with the ruleset and with their interfaces; without a ruleset
// one that stands stays.
func TestAgentKeepsWires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{attached: map[uint32]dataplane.Attachment{}, wires: []dataplane.Wire{{Inside: 4, Outside: 5}}}
		in := &inbox{ch: make(chan *bocage.Ruleset), steps: make(chan Step), errs: make(chan error)}
		links := make(chan []host.Link)
		a, err := New(Config{Host: "h1", Dataplane: f, Rulesets: in, Publish: func(context.Context, []bocage.FlowEvent, []bocage.Cadence) {},
			Links: follow(links)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		wired := func(when string, want ...dataplane.Wire) {
			t.Helper()
			synctest.Wait()
			if got := f.Wires(); len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
				t.Errorf("%s: wires %+v, want %+v", when, got, want)
			}
		}
		links <- cable
		wired("without a ruleset", dataplane.Wire{Inside: 4, Outside: 5})
		in.ch <- &bocage.Ruleset{Generation: 1}
		wired("a ruleset without wires")
		in.ch <- &bocage.Ruleset{Generation: 2, Wires: []bocage.Wire{dmz}}
		wired("a wire", dataplane.Wire{Name: "dmz", Inside: 4, Outside: 5})
		links <- cable[1:]
		wired("its interface is gone")
		if s := a.Status(); len(s.Cut) != 1 || s.Cut[0].Name != "dmz" {
			t.Errorf("status tells of %+v", s.Cut)
		}
		cancel()
		<-done
	})
}

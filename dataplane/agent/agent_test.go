package agent

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/discover"
	"bocage.dev/bocage/host"
)

func port(name string, identity bocage.Identity) bocage.Port {
	return bocage.Port{Interface: name, Identity: identity, Group: 20, Workload: "shop/" + name,
		MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
}

func TestFold(t *testing.T) {
	links := []host.Link{{Index: 1, Name: "lo"}, {Index: 2, Name: "br0", Kind: "bridge"}, veth(3, "eth0", 2), veth(4, "web", 2), veth(5, "stray", 2), veth(6, "apart", 0),
		{Index: 7, Name: "nic", Kind: "device", Master: 2, Ethernet: true}, {Index: 8, Name: "tun0", Kind: "tuntap"}, {Index: 9, Name: "tap0", Kind: "tuntap", Ethernet: true}}
	web, gone := port("web", 101), port("gone", 102)
	tests := []struct {
		name    string
		ruleset *bocage.Ruleset
		watch   Watch
		want    Wanted
	}{
		{"no ruleset, nothing watched", nil, Watch{}, Wanted{}},
		{"a port of the ruleset", &bocage.Ruleset{Ports: []bocage.Port{web}}, Watch{},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 4, Port: web}}}},
		{"a port without an interface", &bocage.Ruleset{Ports: []bocage.Port{gone, web}}, Watch{},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 4, Port: web}}, Missing: []bocage.Port{gone}}},
		{"who joins a watched bridge", &bocage.Ruleset{Ports: []bocage.Port{web}}, Watch{Bridges: []string{"br0"}, Uplinks: []string{"eth0"}},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 4, Port: web}, {Ifindex: 5, Port: bocage.Port{Interface: "stray"}}}}},
		{"a watched bridge without a ruleset", nil, Watch{Bridges: []string{"br0"}, Uplinks: []string{"eth0"}},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 4, Port: bocage.Port{Interface: "web"}}, {Ifindex: 5, Port: bocage.Port{Interface: "stray"}}}}},
		{"an interface without frames", &bocage.Ruleset{Ports: []bocage.Port{port("tun0", 104)}}, Watch{}, Wanted{Unfit: []bocage.Port{port("tun0", 104)}}},
		{"a tap", &bocage.Ruleset{Ports: []bocage.Port{port("tap0", 104)}}, Watch{},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 9, Port: port("tap0", 104)}}}},
		{"two ports on one interface", &bocage.Ruleset{Ports: []bocage.Port{web, port("web", 103)}}, Watch{},
			Wanted{Attachments: []dataplane.Attachment{{Ifindex: 4, Port: web}}}},
	}
	for _, test := range tests {
		if got := Fold(Scene{Ruleset: test.ruleset, Links: links, Watch: test.watch}); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

// An interface that is renamed stays enforced, unless another workload is declared at
// its new name; one that is gone does not.
func TestFoldKeepsRenamedInterfaces(t *testing.T) {
	web, other := port("web", 101), port("web2", 102)
	before := port("web2", 101) // as the dataplane reads it of the kernel
	before.Workload, before.Instance = "", ""
	before.MAC = "02:00:00:00:00:0a" // and this one was declared as another writes it
	web.MAC = "02-00-00-00-00-0A"
	otherMAC, noMAC := before, before
	otherMAC.MAC, noMAC.MAC = "02:00:00:00:00:99", ""
	at := func(ifindex uint32, p bocage.Port) dataplane.Attachment {
		return dataplane.Attachment{Ifindex: ifindex, Port: p}
	}
	for name, test := range map[string]struct {
		ports []bocage.Port
		links []host.Link
		have  []dataplane.Attachment
		want  []dataplane.Attachment
	}{
		"renamed":                              {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2)}, []dataplane.Attachment{at(4, web)}, []dataplane.Attachment{at(4, web)}},
		"renamed, and attached by another":     {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2)}, []dataplane.Attachment{at(4, before)}, []dataplane.Attachment{at(4, web)}},
		"attached by another, of another MAC":  {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2)}, []dataplane.Attachment{at(4, otherMAC)}, nil},
		"attached by another, no MAC declared": {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2)}, []dataplane.Attachment{at(4, noMAC)}, []dataplane.Attachment{at(4, web)}},
		"declared elsewhere, not there yet":    {[]bocage.Port{port("web3", 101)}, []host.Link{veth(4, "web", 2)}, []dataplane.Attachment{at(4, web)}, nil},
		"somebody else's now":                  {[]bocage.Port{web, other}, []host.Link{veth(4, "web2", 2)}, []dataplane.Attachment{at(4, web)}, []dataplane.Attachment{at(4, other)}},
		"gone":                                 {[]bocage.Port{web}, []host.Link{veth(5, "web2", 2)}, []dataplane.Attachment{at(4, web)}, nil},
		"nobody stood there":                   {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2)}, nil, nil},
		"the name is there again, on another":  {[]bocage.Port{web}, []host.Link{veth(4, "web2", 2), veth(5, "web", 2)}, []dataplane.Attachment{at(4, web)}, []dataplane.Attachment{at(5, web)}},
	} {
		got := Fold(Scene{Ruleset: &bocage.Ruleset{Ports: test.ports}, Links: test.links, Have: test.have})
		if !reflect.DeepEqual(got.Attachments, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got.Attachments, test.want)
		}
	}
}

// veth is a link on a bridge.
func veth(index uint32, name string, bridge uint32) host.Link {
	return host.Link{Index: index, Name: name, Kind: "veth", Master: bridge, Ethernet: true, PeerNamespace: 7}
}

// A name that is used again does not bring the identity of whoever had it before.
func TestFoldBindsInstances(t *testing.T) {
	web := port("veth0", 101)
	web.Instance = "c1"
	rs := &bocage.Ruleset{Ports: []bocage.Port{web}}
	links := []host.Link{{Index: 2, Name: "br0", Kind: "bridge"}, veth(4, "veth0", 2), veth(5, "veth9", 2)}
	binding := func(ifindex uint32, instance, mac string) discover.Found {
		return discover.Found{Listed: true, Bindings: []discover.Binding{{Ifindex: ifindex, Instance: instance, MAC: mac}}}
	}
	tests := []struct {
		name  string
		found discover.Found
		have  []dataplane.Attachment
		want  uint32 // the index that gets the identity, 0: none
	}{
		{"where it is", binding(4, "c1", web.MAC), nil, 4},
		{"under another name", binding(5, "c1", web.MAC), nil, 5},
		{"another instance", binding(4, "c2", web.MAC), []dataplane.Attachment{{Ifindex: 4, Port: web}}, 0},
		{"another interface of it", binding(4, "c1", "02:00:00:00:00:99"), nil, 0},
		{"it is gone", discover.Found{Listed: true}, []dataplane.Attachment{{Ifindex: 4, Port: web}}, 0},
		{"nobody can say, and it stood there", discover.Found{}, []dataplane.Attachment{{Ifindex: 4, Port: web}}, 4},
		{"nobody can say, and another stood there", discover.Found{}, []dataplane.Attachment{{Ifindex: 4, Port: port("veth0", 102)}}, 0},
		{"nobody can say, and nobody stood there", discover.Found{}, nil, 0},
		{"where there is no link", binding(77, "c1", web.MAC), nil, 0},
	}
	for _, test := range tests {
		got := Fold(Scene{Ruleset: rs, Links: links, Found: test.found, Have: test.have})
		var at uint32
		for _, a := range got.Attachments {
			if a.Port.Identity == 101 {
				at = a.Ifindex
			}
		}
		if at != test.want || len(got.Missing) != 0 {
			t.Errorf("%s: identity at %d, want %d; missing %v", test.name, at, test.want, got.Missing)
		}
	}
}

// Newcomers are refused where one of them may be enforced, and observed elsewhere.
func TestFoldClosesNewcomers(t *testing.T) {
	links := []host.Link{{Index: 2, Name: "br0", Kind: "bridge"}, veth(4, "veth0", 2)}
	shop := discover.Newcomer{Workload: "shop/web.h1", Namespace: "shop", Labels: map[string]string{"container/app": "web"}}
	dev := discover.Newcomer{Workload: "dev/web.h1", Namespace: "dev", Labels: map[string]string{"container/app": "web"}}
	network := func(coming ...discover.Newcomer) discover.Found {
		return discover.Found{Networks: []discover.Network{{Bridge: "br0", Known: true, Coming: coming}}}
	}
	bound := network(shop)
	bound.Bindings = []discover.Binding{{Ifindex: 4, Newcomer: dev}}
	inShop := []bocage.Newcomers{{Namespaces: []string{"shop"}}}
	enforced := &bocage.Ruleset{Ports: []bocage.Port{{Interface: "gone", Instance: "x", Group: 20, Workload: "dev/web.h1"}}, Groups: []bocage.GroupInfo{{Group: 20, Enforce: true}}, Newcomers: inShop}
	tests := []struct {
		name    string
		ruleset *bocage.Ruleset
		watch   Watch
		found   discover.Found
		want    bool
	}{
		{"no ruleset", nil, Watch{Bridges: []string{"br0"}}, discover.Found{}, false},
		{"nothing enforces", &bocage.Ruleset{}, Watch{Bridges: []string{"br0"}}, discover.Found{}, false},
		{"somebody enforces, nothing is known", &bocage.Ruleset{Newcomers: inShop}, Watch{Bridges: []string{"br0"}}, discover.Found{}, true},
		{"an enforced one comes", &bocage.Ruleset{Newcomers: inShop}, Watch{}, network(shop), true},
		{"an observed one comes", &bocage.Ruleset{Newcomers: inShop}, Watch{}, network(dev), false},
		{"one of each comes", &bocage.Ruleset{Newcomers: inShop}, Watch{}, network(dev, shop), true},
		{"nobody is known to come", &bocage.Ruleset{Newcomers: inShop}, Watch{}, network(), true},
		{"an observed one came", &bocage.Ruleset{Newcomers: inShop}, Watch{}, bound, false},
		{"the selector means others", &bocage.Ruleset{Newcomers: []bocage.Newcomers{{Workload: bocage.Selector{MatchLabels: map[string]string{"container/app": "db"}}}}}, Watch{}, network(shop), false},
		{"one that was enforced comes back", enforced, Watch{}, bound, true},
	}
	for _, test := range tests {
		got := Fold(Scene{Ruleset: test.ruleset, Links: links, Watch: test.watch, Found: test.found})
		if len(got.Attachments) != 1 || got.Attachments[0].Ifindex != 4 || got.Attachments[0].Closed != test.want {
			t.Errorf("%s: %+v, want closed %t", test.name, got.Attachments, test.want)
		}
	}
}

func TestDifference(t *testing.T) {
	links := []host.Link{veth(4, "web", 0), veth(5, "api", 0)}
	web, api := dataplane.Attachment{Ifindex: 4, Port: port("web", 101)}, dataplane.Attachment{Ifindex: 5, Port: port("api", 102)}
	moved := web
	moved.Port.Identity = 103
	turned := web
	turned.Port.Addresses = []netip.Addr{web.Port.Addresses[1], web.Port.Addresses[0]}
	lost := dataplane.Attachment{Ifindex: 9, Port: port("gone", 104)}
	unknown := dataplane.Attachment{Ifindex: 4, Port: bocage.Port{Interface: "web"}}
	tests := []struct {
		name       string
		want, have []dataplane.Attachment
		ruled      bool
		attach     []dataplane.Attachment
		detach     []uint32
	}{
		{"nothing yet", []dataplane.Attachment{web, api}, nil, true, []dataplane.Attachment{web, api}, nil},
		{"all there", []dataplane.Attachment{web}, []dataplane.Attachment{web}, true, nil, nil},
		{"order of addresses", []dataplane.Attachment{turned}, []dataplane.Attachment{web}, true, nil, nil},
		{"another identity", []dataplane.Attachment{moved}, []dataplane.Attachment{web}, true, []dataplane.Attachment{moved}, nil},
		{"no longer wanted", []dataplane.Attachment{web}, []dataplane.Attachment{web, api}, true, nil, []uint32{5}},
		{"interface gone", nil, []dataplane.Attachment{lost}, false, nil, []uint32{9}},
		{"no ruleset yet", nil, []dataplane.Attachment{web}, false, nil, nil},
		{"watched, no ruleset yet", []dataplane.Attachment{unknown}, []dataplane.Attachment{web}, false, nil, nil},
	}
	for _, test := range tests {
		attach, detach := difference(test.want, test.have, links, test.ruled)
		if !reflect.DeepEqual(attach, test.attach) || !slices.Equal(detach, test.detach) {
			t.Errorf("%s: attach %+v, detach %v", test.name, attach, detach)
		}
	}
}

// fake is a dataplane that remembers.
type fake struct {
	mu         sync.Mutex
	generation uint64
	candidate  uint64
	attached   map[uint32]dataplane.Attachment
	wires      []dataplane.Wire
	refuse     error // of Attach
	tampered   []string
	gone       map[uint32]bool
	attaches   int
	amended    int
	// unamendable refuses changes.
	unamendable bool
	events      []bocage.FlowEvent
}

func (f *fake) Generation() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.generation
}

func (f *fake) Apply(rs *bocage.Ruleset) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rs.Default == 99 || rs.Generation < f.generation {
		return errors.New("cannot be applied")
	}
	f.generation = rs.Generation
	return nil
}

func (f *fake) Amend(c dataplane.Change, _ func() *bocage.Ruleset) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unamendable {
		return errors.New("apply the whole ruleset")
	}
	f.generation = c.Generation
	f.amended++
	return nil
}

func (f *fake) Revert(rs *bocage.Ruleset) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.generation = rs.Generation
	return nil
}

func (f *fake) Shadow(rs *bocage.Ruleset) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.candidate = 0
	if rs == nil {
		return nil
	}
	if rs.Default == 99 {
		return errors.New("cannot be evaluated")
	}
	f.candidate = rs.Generation
	return nil
}

func (f *fake) Attach(a dataplane.Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return f.refuse
	}
	f.attached[a.Ifindex] = a
	f.attaches++
	return nil
}

func (f *fake) Detach(ifindex uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, ifindex)
	return nil
}

func (f *fake) Repair() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := f.tampered
	f.tampered = nil
	return done, nil
}

func (f *fake) Attached() []dataplane.Attachment {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []dataplane.Attachment
	for _, a := range f.attached {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b dataplane.Attachment) int { return int(a.Ifindex) - int(b.Ifindex) })
	return all
}

func (f *fake) Run(ctx context.Context, each func([]bocage.FlowEvent, []bocage.Cadence)) error {
	each(f.events, nil)
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Gone(ifindex uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone[ifindex]
}

// inbox gives steps as a test puts them in.
type inbox struct {
	ch     chan *bocage.Ruleset // to apply
	steps  chan Step
	errs   chan error
	failed []bool
}

func (i *inbox) Next(ctx context.Context, failed bool) (Step, error) {
	i.failed = append(i.failed, failed)
	select {
	case rs := <-i.ch:
		return Step{What: Apply, Ruleset: rs}, nil
	case step := <-i.steps:
		return step, nil
	case err := <-i.errs:
		return Step{}, err
	case <-ctx.Done():
		return Step{}, ctx.Err()
	}
}

// follow tells an agent of links as they come.
func follow(links <-chan []host.Link) func(context.Context, func([]host.Link) error) error {
	return func(ctx context.Context, each func([]host.Link) error) error {
		for {
			select {
			case l := <-links:
				if err := each(l); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func TestAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{attached: map[uint32]dataplane.Attachment{}, events: []bocage.FlowEvent{{Source: 7}}}
		in := &inbox{ch: make(chan *bocage.Ruleset), steps: make(chan Step), errs: make(chan error)}
		links := make(chan []host.Link)
		published := 0
		a, err := New(Config{Host: "h1", Dataplane: f, Rulesets: in,
			Links:   follow(links),
			Publish: func(_ context.Context, events []bocage.FlowEvent, _ []bocage.Cadence) { published += len(events) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		attached := func(want ...uint32) {
			t.Helper()
			synctest.Wait()
			var got []uint32
			for _, a := range f.Attached() {
				got = append(got, a.Ifindex)
			}
			if !slices.Equal(got, want) {
				t.Errorf("attached %v, want %v", got, want)
			}
		}

		web, api := port("web", 101), port("api", 102)
		in.ch <- &bocage.Ruleset{Generation: 1, Ports: []bocage.Port{web, api}}
		attached() // no links listed yet
		links <- []host.Link{veth(4, "web", 0)}
		attached(4)
		if s := a.Status(); s.Generation != 1 || len(s.Missing) != 1 || s.Missing[0].Interface != "api" || len(s.Faults) != 0 {
			t.Errorf("status %+v", s)
		}
		links <- []host.Link{veth(4, "web", 0), veth(5, "api", 0)}
		attached(4, 5)
		links <- []host.Link{veth(5, "api", 0), veth(6, "web", 0)}
		attached(5, 6)

		// A ruleset that cannot be applied changes nothing, and is asked for again.
		in.ch <- &bocage.Ruleset{Generation: 2, Default: 99}
		attached(5, 6)
		if s := a.Status(); s.Generation != 1 || len(s.Faults) != 1 || s.NotApplied != 2 {
			t.Errorf("status %+v", s)
		}
		in.ch <- &bocage.Ruleset{Generation: 3, Ports: []bocage.Port{api}}
		attached(5)
		if s := a.Status(); s.Generation != 3 || len(s.Faults) != 0 || s.NotApplied != 0 {
			t.Errorf("status %+v", s)
		}
		if !slices.Equal(in.failed, []bool{false, false, true, false}) {
			t.Errorf("asked with %v", in.failed)
		}

		// What fails is tried again.
		f.mu.Lock()
		f.refuse = errors.New("busy")
		f.mu.Unlock()
		in.ch <- &bocage.Ruleset{Generation: 4, Ports: []bocage.Port{web, api}}
		attached(5)
		if s := a.Status(); len(s.Faults) != 1 {
			t.Errorf("status %+v", s)
		}
		f.mu.Lock()
		f.refuse = nil
		f.mu.Unlock()
		time.Sleep(10 * time.Second) // of the bubble: the retry
		attached(5, 6)

		in.errs <- errors.New("no controller")
		time.Sleep(2 * time.Second)
		in.ch <- &bocage.Ruleset{Generation: 5, Ports: []bocage.Port{web}}
		attached(6)
		// Another link with its number is attached anew; so is one of which nobody
		// can say, if its program has gone.
		reborn := []host.Link{veth(5, "api", 0), veth(6, "web", 0)}
		reborn[1].Born = 9
		before := f.attaches
		links <- reborn
		attached(6)
		if f.attaches != before+1 {
			t.Errorf("attached %d times", f.attaches-before)
		}
		doubted := slices.Clone(reborn)
		doubted[1].Doubts = 1
		links <- doubted
		attached(6)
		if f.attaches != before+1 {
			t.Error("attached anew on a mere doubt")
		}
		f.mu.Lock()
		f.gone = map[uint32]bool{6: true}
		f.mu.Unlock()
		doubted = slices.Clone(doubted)
		doubted[1].Doubts = 2
		links <- doubted
		attached(6)
		if f.attaches != before+2 {
			t.Error("not attached anew after its program had gone")
		}
		if published != 1 {
			t.Errorf("%d events published, want 1", published)
		}

		// A candidate is evaluated beside; one that cannot be is told, not tried again.
		in.steps <- Step{What: Shadow, Ruleset: &bocage.Ruleset{Generation: 6, Ports: []bocage.Port{api}}}
		attached(6)
		if f.candidate != 6 || a.Status().Generation != 5 {
			t.Errorf("candidate %d beside %d", f.candidate, a.Status().Generation)
		}
		in.steps <- Step{What: Shadow, Ruleset: &bocage.Ruleset{Generation: 7, Default: 99}}
		synctest.Wait()
		if s := a.Status(); f.candidate != 0 || len(s.Faults) != 1 || s.NotApplied != 0 || in.failed[len(in.failed)-1] {
			t.Errorf("candidate %d, status %+v", f.candidate, s)
		}
		in.steps <- Step{What: Shadow}
		synctest.Wait()
		if s := a.Status(); len(s.Faults) != 0 {
			t.Errorf("status %+v", s)
		}

		// Only told to does it go back, and its ports with it.
		in.steps <- Step{What: Revert, Ruleset: &bocage.Ruleset{Generation: 3, Ports: []bocage.Port{api}}}
		attached(5)
		if s := a.Status(); s.Generation != 3 || len(s.Faults) != 0 {
			t.Errorf("status %+v", s)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// What had to be repaired is told for a while, so that somebody asks who did it.
func TestAgentTellsOfTampering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{attached: map[uint32]dataplane.Attachment{}}
		a, err := New(Config{Host: "h1", Dataplane: f, Rulesets: silent{}, Publish: func(context.Context, []bocage.FlowEvent, []bocage.Cadence) {},
			Links: func(ctx context.Context, _ func([]host.Link) error) error { <-ctx.Done(); return ctx.Err() }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		<-time.After(2 * keepEvery)
		if s := a.Status(); len(s.Faults) != 0 || s.Repaired != 0 {
			t.Errorf("untouched: %+v", s)
		}
		f.mu.Lock()
		f.tampered = []string{"from_workload had been detached from work0"}
		f.mu.Unlock()
		<-time.After(2 * keepEvery)
		if s := a.Status(); s.Repaired != 1 || len(s.Faults) != 1 || !strings.Contains(s.Faults[0], "detached from work0") {
			t.Errorf("after tampering: %+v", s)
		}
		<-time.After(tellFor + keepEvery)
		if s := a.Status(); len(s.Faults) != 0 || s.Repaired != 1 {
			t.Errorf("a while later: %+v", s)
		}
		cancel()
		<-done
	})
}

// silent never has a ruleset.
type silent struct{}

func (silent) Next(ctx context.Context, _ bool) (Step, error) {
	<-ctx.Done()
	return Step{}, ctx.Err()
}

func TestNewNamesAllFaults(t *testing.T) {
	_, err := New(Config{})
	if err == nil {
		t.Fatal("an agent of nothing")
	}
	for _, name := range []string{"Dataplane", "Rulesets", "Links", "Publish"} {
		if !slices.Contains(splitLines(err.Error()), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
}

func splitLines(s string) (words []string) {
	word := ""
	for _, r := range s + " " {
		if r == ' ' || r == '\n' || r == ':' {
			words = append(words, word)
			word = ""
			continue
		}
		word += string(r)
	}
	return words
}

// A change is applied as such, and what it does not lead to as the whole; either way
// the agent goes by what comes of it.
func TestAgentAmends(t *testing.T) {
	for _, unamendable := range []bool{false, true} {
		f := &fake{attached: map[uint32]dataplane.Attachment{}, generation: 1, unamendable: unamendable}
		a, err := New(Config{Host: "h1", Dataplane: f, Rulesets: silent{}, Publish: func(context.Context, []bocage.FlowEvent, []bocage.Cadence) {},
			Links: func(ctx context.Context, _ func([]host.Link) error) error { <-ctx.Done(); return ctx.Err() }})
		if err != nil {
			t.Fatal(err)
		}
		after := &bocage.Ruleset{Generation: 2}
		step := Step{What: Apply, Change: &dataplane.Change{Generation: 2}, After: func() *bocage.Ruleset { return after }}
		if err := a.take(step); err != nil || a.ruleset != after || f.generation != 2 || (f.amended == 1) == unamendable {
			t.Errorf("unamendable %t: %v, goes by %+v, %d in force, amended %d times", unamendable, err, a.ruleset, f.generation, f.amended)
		}
		after = &bocage.Ruleset{Generation: 3, Default: 99}
		f.unamendable = true
		step.Change = &dataplane.Change{Generation: 3}
		if err := a.take(step); err == nil || a.Status().NotApplied != 3 || f.generation != 2 {
			t.Errorf("what cannot be applied: %v, %+v", err, a.Status())
		}
	}
}

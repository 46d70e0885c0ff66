package dataplane

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// plane is a dataplane in a namespace of its own, which stands for a host.
type plane struct {
	command   []string // starts children; nil is the test's own program
	t         testing.TB
	namespace string
	cfg       Config
	*Dataplane
	verified loader
	events   chan bocage.FlowEvent
	cadences chan bocage.Cadence
	links    int
	drivers  bool // wires are such that drivers forward on
}

// newPlane opens a dataplane in a fresh namespace.
func newPlane(t testing.TB, options ...func(*Config)) *plane {
	t.Helper()
	p := &plane{t: t, namespace: hosttest.Namespace(t), events: make(chan bocage.FlowEvent, 1<<16),
		cadences: make(chan bocage.Cadence, 1<<10)}
	p.cfg = Config{Host: "h1", PinDir: pinDir(t), FlowEntries: 1 << 14, EventBytes: 1 << 20}
	for _, option := range options {
		option(&p.cfg)
	}
	p.verified = p.cfg.loads
	if t, is := t.(*testing.T); is && p.verified == nil {
		p.verified = loaded.load(t)
	}
	p.reopen()
	t.Cleanup(func() {
		p.Close()
		p.in(func() error {
			if err := Remove(p.cfg.PinDir); err != nil {
				t.Error(err)
			}
			return nil
		})
	})
	return p
}

// unshelved has a plane load what is nobody else's, before or after.
func unshelved(c *Config) { c.loads = loadAnew }

// pinDir is a folder in a bpffs of the test's own.
func pinDir(t testing.TB) string {
	return filepath.Join(t.TempDir(), "bpf")
}

// reopen opens with programs that were verified for the same state before, where open
// loads them anew as every process does.
func (p *plane) reopen() {
	p.t.Helper()
	p.cfg.loads = p.verified
	p.open()
	p.cfg.loads = nil
}

func (p *plane) open() {
	p.t.Helper()
	p.in(func() (err error) {
		p.Dataplane, err = Open(p.cfg)
		return err
	})
}

// in runs fn in the host's namespace.
func (p *plane) in(fn func() error) {
	p.t.Helper()
	if err := host.In(p.namespace, fn); err != nil {
		p.t.Fatal(err)
	}
}

// run hands events to the channel until the test ends or stop is called.
func (p *plane) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	plane := p.Dataplane
	go func() {
		done <- plane.Run(ctx, func(events []bocage.FlowEvent, cadences []bocage.Cadence) {
			for _, e := range events {
				select {
				case p.events <- e:
				default:
				}
			}
			for _, c := range cadences {
				select {
				case p.cadences <- c:
				default:
				}
			}
		})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != context.Canceled {
			p.t.Errorf("Run ended with %v", err)
		}
	}
	p.t.Cleanup(stop)
	return stop
}

// workload is a namespace behind an enforcement point.
type workload struct {
	namespace string
	ifindex   uint32
	link      string
	mac       net.HardwareAddr
	v4, v6    netip.Addr
	port      bocage.Port
}

// workload makes a namespace with a veth to the host; address is the last byte
// of 10.77.0.x and fd77::x. The host routes between them.
func (p *plane) workload(address byte, identity bocage.Identity, group bocage.Group) *workload {
	p.t.Helper()
	p.links++
	w := &workload{
		namespace: hosttest.Namespace(p.t),
		link:      "wl" + string(rune('a'+p.links)),
		mac:       net.HardwareAddr{2, 0, 0, 0, 0, address},
		v4:        netip.AddrFrom4([4]byte{10, 77, 0, address}),
		v6:        netip.AddrFrom16([16]byte{0xfd, 0x77, 15: address}),
	}
	gateway := net.HardwareAddr{2, 0, 0, 0, 1, address}
	must(p.t, host.CreateVeth(host.Veth{Name: w.link, Namespace: p.namespace, Peer: "eth0", PeerNamespace: w.namespace,
		MAC: gateway, PeerMAC: w.mac}))
	link, err := host.LinkNamed(p.namespace, w.link)
	must(p.t, err)
	w.ifindex = link.Index
	for _, a := range []netip.Addr{w.v4, w.v6} {
		bits := a.BitLen()
		must(p.t, host.AddAddress(w.namespace, "eth0", netip.PrefixFrom(a, bits)))
		must(p.t, host.AddRoute(p.namespace, host.Route{Destination: netip.PrefixFrom(a, bits), Link: w.link}))
		must(p.t, host.AddNeighbor(p.namespace, w.link, a, w.mac))
	}
	for _, via := range []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")} {
		must(p.t, host.AddNeighbor(w.namespace, "eth0", via, gateway))
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if via.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		must(p.t, host.AddRoute(w.namespace, host.Route{Destination: everything, Gateway: via, Link: "eth0", OnLink: true}))
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		must(p.t, host.Sysctl(p.namespace, key, "1"))
	}
	w.port = bocage.Port{Interface: w.link, Identity: identity, Group: group, Workload: "test/" + w.link,
		MAC: w.mac.String(), Addresses: []netip.Addr{w.v4, w.v6}}
	return w
}

func (p *plane) attach(ws ...*workload) {
	p.t.Helper()
	for _, w := range ws {
		p.in(func() error { return p.Attach(Attachment{Ifindex: w.ifindex, Port: w.port}) })
	}
}

func (w *workload) peers(h string) []bocage.Peer {
	var peers []bocage.Peer
	for _, a := range []netip.Addr{w.v4, w.v6} {
		peers = append(peers, bocage.Peer{Prefix: netip.PrefixFrom(a, a.BitLen()), Identity: w.port.Identity,
			Group: w.port.Group, Host: h, Workload: w.port.Workload})
	}
	return peers
}

// Decisions of the tests' rulesets.
const (
	decideDefault    = bocage.DecisionID(1)
	decideAllow      = bocage.DecisionID(2)
	decideQuarantine = bocage.DecisionID(3)
	decideDecoy      = bocage.DecisionID(4)
	decideInspect    = bocage.DecisionID(5)
	decideGuardrail  = bocage.DecisionID(6)
)

// ruleset refuses everything but the rules, in enforcing groups.
func ruleset(generation uint64, rules []bocage.Rule, ws ...*workload) *bocage.Ruleset {
	rs := &bocage.Ruleset{Generation: generation, Default: decideDefault, Rules: rules, Decisions: []bocage.Decision{
		{ID: decideDefault, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: decideAllow, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule},
		{ID: decideQuarantine, Verdict: bocage.VerdictDrop, Code: bocage.ReasonQuarantine},
		{ID: decideDecoy, Verdict: bocage.VerdictDecoy, Code: bocage.ReasonDefaultDeny},
		{ID: decideInspect, Verdict: bocage.VerdictInspect, Code: bocage.ReasonRule, Profile: 7},
		{ID: decideGuardrail, Verdict: bocage.VerdictDrop, Code: bocage.ReasonGuardrail},
	}}
	seen := map[bocage.Group]bool{}
	for _, w := range ws {
		rs.Peers = append(rs.Peers, w.peers("h1")...)
		rs.Ports = append(rs.Ports, w.port)
		if !seen[w.port.Group] {
			seen[w.port.Group] = true
			rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: w.port.Group, Enforce: true})
		}
	}
	return rs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await returns the first event that is chosen.
func (p *plane) await(what string, chosen func(bocage.FlowEvent) bool) bocage.FlowEvent {
	p.t.Helper()
	timeout := time.After(long)
	var seen []bocage.FlowEvent
	for {
		select {
		case e := <-p.events:
			if chosen(e) {
				return e
			}
			seen = append(seen, e)
		case <-timeout:
			for _, e := range seen {
				p.t.Logf("event: %+v", e)
			}
			p.t.Fatalf("no event: %s", what)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

// variant is what stands on the path. It is prepared once and removed once;
// between, it stands on the path from start to stop, once in each repeat.
type variant interface {
	name() string
	prepare() error
	start() error
	stop() error
	remove() error
}

// pathVariants are what a path is measured with.
func pathVariants(p *path, o options) []variant {
	variants := []variant{unfiltered{}}
	add := func(v variant) {
		if o.only.MatchString(v.name()) {
			variants = append(variants, v)
		}
	}
	if nft := nftProgram(); nft != "" {
		for _, n := range o.linear {
			add(nftables{program: nft, path: p, entries: n})
		}
		add(nftables{program: nft, path: p, entries: o.mapped, mapped: true})
	}
	for _, n := range o.sizes {
		add(&protected{path: p, entries: n})
	}
	add(&protected{path: p, entries: 1_000, observe: true})
	add(&protected{path: p, entries: 1_000, verify: true})
	add(&protected{path: p, entries: 1_000, direct: true})
	add(&protected{path: p, entries: 1_000, direct: true, verify: true})
	return variants
}

// nftProgram is where nft is, or empty.
func nftProgram() string {
	nft, err := exec.LookPath("nft")
	if err != nil {
		fmt.Println("nft is not installed: no comparison with nftables (apt-get install nftables)")
	}
	return nft
}

type unfiltered struct{}

func (unfiltered) name() string   { return "unfiltered" }
func (unfiltered) prepare() error { return nil }
func (unfiltered) start() error   { return nil }
func (unfiltered) stop() error    { return nil }
func (unfiltered) remove() error  { return nil }

// nftables is the peer: established connections first, then the same policy, as
// a list of rules of which the last ones match, or as one verdict map.
type nftables struct {
	program string
	path    *path
	entries int
	mapped  bool
}

func (n nftables) name() string {
	form := "rules"
	if n.mapped {
		form = "map"
	}
	return fmt.Sprintf("nftables %s %s", form, short(n.entries))
}

func (n nftables) prepare() error { return nil }
func (n nftables) remove() error  { return nil }

func (n nftables) start() error {
	cells := make([]cell, 0, n.entries)
	for i := range n.entries - len(offered) {
		cells = append(cells, cell{netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)}), netip.AddrFrom4([4]byte{10, 80, 0, 1}), "tcp", 443})
	}
	for _, o := range offered {
		cells = append(cells, cell{n.path.client.address, n.path.server.address, o.protocol.String(), o.port})
	}
	var script strings.Builder
	script.WriteString("table inet bench {\n")
	if n.mapped {
		script.WriteString("map cells { type ipv4_addr . ipv4_addr . inet_proto . inet_service : verdict; elements = {\n")
		for _, c := range cells {
			fmt.Fprintf(&script, "%s . %s . %s . %d : accept,\n", c.from, c.to, strings.ToLower(c.protocol), c.port)
		}
		script.WriteString("} }\n")
	}
	script.WriteString("chain forward { type filter hook forward priority 0; policy drop;\nct state established,related accept\n")
	if n.mapped {
		script.WriteString("ip saddr . ip daddr . ip protocol . th dport vmap @cells\n")
	} else {
		for _, c := range cells {
			fmt.Fprintf(&script, "ip saddr %s ip daddr %s %s dport %d accept\n", c.from, c.to, strings.ToLower(c.protocol), c.port)
		}
	}
	script.WriteString("}\n}\n")
	return n.run(script.String())
}

type cell struct {
	from, to netip.Addr
	protocol string
	port     uint16
}

func (n nftables) stop() error { return n.run("delete table inet bench") }

func (n nftables) run(script string) error {
	cmd := exec.Command(n.program, "-f", "-")
	var said strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(script), &said
	if err := host.Start(n.path.host, cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, said.String())
	}
	return nil
}

// protected is Bocage at both veths.
type protected struct {
	path    *path
	entries int // rules in the policy; all but those of offered match no packet
	observe bool
	direct  bool // packets go straight from one workload to the other
	verify  bool // connections must speak what they declare
	plane   *dataplane.Dataplane
	dir     string
	end     func() error // of what runs while the variant stands on the path
}

func (e *protected) name() string {
	mode := ""
	if e.observe {
		mode = " observing"
	}
	if e.direct {
		mode += " direct"
	}
	if e.verify {
		mode += " verifying"
	}
	return fmt.Sprintf("bocage%s %s", mode, short(e.entries))
}

func (e *protected) prepare() (err error) {
	if e.dir, err = os.MkdirTemp("", "bocage-bench-"); err != nil {
		return err
	}
	return host.In(e.path.host, func() error {
		e.plane, err = dataplane.Open(dataplane.Config{Host: "bench", PinDir: e.pins(),
			RuleEntries: max(e.entries, 1<<12), PeerEntries: max(e.entries, 1<<12), DirectDelivery: e.direct})
		if err != nil {
			return err
		}
		return e.plane.Apply(e.ruleset())
	})
}

func (e *protected) start() error {
	e.end = func() error { return nil }
	if e.direct { // which needs somebody who watches
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- e.plane.Run(ctx, func([]bocage.FlowEvent, []bocage.Cadence) {}) }()
		e.end = func() error {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		}
	}
	return host.In(e.path.host, func() error {
		for i, port := range e.ports() {
			if err := e.plane.Attach(dataplane.Attachment{Ifindex: []end{e.path.client, e.path.server}[i].ifindex, Port: port}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e *protected) stop() error {
	err := e.end()
	return host.In(e.path.host, func() error {
		return errors.Join(err, e.plane.Detach(e.path.client.ifindex), e.plane.Detach(e.path.server.ifindex))
	})
}

func (e *protected) remove() error {
	var errs []error
	if e.plane != nil {
		errs = append(errs, e.plane.Close())
	}
	if e.dir != "" {
		errs = append(errs, dataplane.Remove(e.pins()), os.RemoveAll(e.dir))
	}
	return errors.Join(errs...)
}

func (e *protected) pins() string { return filepath.Join(e.dir, "bpf") }

func (e *protected) ports() []bocage.Port {
	var ports []bocage.Port
	for i, end := range []end{e.path.client, e.path.server} {
		ports = append(ports, bocage.Port{Interface: end.link, Identity: bocage.Identity(101 + i), Group: bocage.Group(201 + i),
			MAC: end.mac.String(), Addresses: []netip.Addr{end.address}})
	}
	return ports
}

func (e *protected) ruleset() *bocage.Ruleset {
	const deny, allow, verified = 1, 2, 3
	rs := &bocage.Ruleset{Generation: 1, Default: deny, Decisions: []bocage.Decision{
		{ID: deny, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: allow, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule},
		{ID: verified, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule, Duties: &bocage.Duties{Verify: "http"}}}, Ports: e.ports()}
	for _, p := range rs.Ports {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: p.Group, Enforce: !e.observe})
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(p.Addresses[0], 32), Identity: p.Identity, Group: p.Group, Host: "bench"})
	}
	add := func(o offer, from, to bocage.Group) {
		decision := bocage.DecisionID(allow)
		if e.verify && o.protocol == bocage.ProtocolTCP {
			decision = verified
		}
		rs.Rules = append(rs.Rules, bocage.Rule{From: from, To: to, Protocol: o.protocol, Ports: bocage.PortRange{First: o.port, Last: o.port}, Decision: decision})
	}
	for _, o := range offered {
		add(o, 201, 202)
	}
	for i := range e.entries - len(offered) {
		add(offer{bocage.ProtocolTCP, 443}, bocage.Group(1000+i), 300)
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)}), 32),
			Identity: bocage.Identity(1000 + i), Group: bocage.Group(1000 + i)})
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: bocage.Group(1000 + i), Enforce: true})
	}
	slices.SortFunc(rs.Peers, func(a, b bocage.Peer) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(rs.Groups, func(a, b bocage.GroupInfo) int { return int(a.Group) - int(b.Group) })
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	return rs
}

// offer is a service that the path's policy lets the client have.
type offer struct {
	protocol bocage.Protocol
	port     uint16
}

var offered = []offer{
	{bocage.ProtocolTCP, portTCP},
	{bocage.ProtocolTCP, portConnections},
	{bocage.ProtocolUDP, portUDP},
}

// short writes a number of entries: 10, 1k, 1M.
func short(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n >= 1_000 && n%1_000 == 0:
		return fmt.Sprintf("%dk", n/1_000)
	}
	return fmt.Sprint(n)
}

// Command bench measures what enforcement costs on a path between two
// workloads: two network namespaces, each behind a veth, and a host that routes
// between them. The same path runs unfiltered, with an nftables ruleset of the
// same policy (if nft is installed), and with Bocage enforcing at both veths.
//
//	go run ./dataplane/bench -repeats 7
//
// The variants run in turn inside each repeat, in random order, so that what
// else the machine does falls on all of them; figures are medians, and ratios
// are medians of the ratios to the unfiltered path within a repeat. It needs
// root, makes its own namespaces, and leaves nothing behind.
package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

func main() {
	repeats := flag.Int("repeats", 5, "how often each test of each variant runs")
	duration := flag.Duration("duration", time.Second, "of one test")
	rules := flag.Int("rules", 1000, "further rules in the policy, which no packet matches")
	realtime := flag.Bool("realtime", false, "put the generators ahead of whatever else the machine does")
	flag.Parse()
	r, err := measure(*repeats, *duration, *rules, *realtime)
	if err == nil {
		err = r.print(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// results are rates by variant and test, one per repeat.
type results struct {
	variants []string // the first is the one that the others are compared to
	rates    map[string]map[string][]float64
}

func measure(repeats int, duration time.Duration, rules int, realtime bool) (r results, err error) {
	if os.Geteuid() != 0 {
		return r, errors.New("needs root, to make network namespaces: run it with sudo")
	}
	p, err := newPath()
	if err != nil {
		return r, errors.Join(err, p.remove())
	}
	defer func() { err = errors.Join(err, p.remove()) }()
	p.realtime = realtime
	variants := []variant{unfiltered{}}
	if nft, err := exec.LookPath("nft"); err == nil {
		variants = append(variants, nftables{nft, p, rules})
	} else {
		fmt.Println("nft is not installed: no comparison with nftables (apt-get install nftables)")
	}
	variants = append(variants, &enforced{path: p, rules: rules})

	r.rates = make(map[string]map[string][]float64)
	for _, v := range variants {
		r.variants = append(r.variants, v.name())
		r.rates[v.name()] = make(map[string][]float64)
	}
	for range repeats {
		order := slices.Clone(variants)
		mathrand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, v := range order {
			if err := v.start(); err != nil {
				return r, errors.Join(fmt.Errorf("%s: %w", v.name(), err), v.stop())
			}
			for _, t := range tests {
				rate, err := t.run(p, duration)
				if err != nil {
					return r, errors.Join(fmt.Errorf("%s, %s: %w", v.name(), t.name, err), v.stop())
				}
				r.rates[v.name()][t.name] = append(r.rates[v.name()][t.name], rate)
			}
			if err := v.stop(); err != nil {
				return r, fmt.Errorf("%s: %w", v.name(), err)
			}
		}
	}
	return r, nil
}

// ratios are those of a variant to the first, sorted.
func (r results) ratios(variant, test string) []float64 {
	all, base := r.rates[variant][test], r.rates[r.variants[0]][test]
	ratios := make([]float64, len(all))
	for i := range all {
		ratios[i] = all[i] / base[i]
	}
	slices.Sort(ratios)
	return ratios
}

func (r results) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d CPUs; ratio to %s: median (lowest to highest)\n", runtime.NumCPU(), r.variants[0])
	header := "path"
	for _, t := range tests {
		header += "\t" + t.name + "\tratio"
	}
	fmt.Fprintln(w, header)
	for _, v := range r.variants {
		line := v
		for _, t := range tests {
			ratios := r.ratios(v, t.name)
			line += fmt.Sprintf("\t%.4g\t%.2f (%.2f to %.2f)", median(r.rates[v][t.name]), median(ratios), ratios[0], ratios[len(ratios)-1])
		}
		fmt.Fprintln(w, line)
	}
	return w.Flush()
}

func median(all []float64) float64 {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, cmp.Compare[float64])
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[len(sorted)/2]
}

// path is what packets go along.
type path struct {
	prefix   string
	host     string
	client   end
	server   end
	created  []string
	realtime bool
}

type end struct {
	namespace, link string
	ifindex         uint32
	mac             net.HardwareAddr
	address         netip.Addr
}

func newPath() (*path, error) {
	var random [4]byte
	rand.Read(random[:])
	p := &path{prefix: "bct" + hex.EncodeToString(random[:])}
	p.host = p.prefix + "h"
	p.client = end{namespace: p.prefix + "c", link: "client", mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, address: netip.MustParseAddr("10.78.0.1")}
	p.server = end{namespace: p.prefix + "s", link: "server", mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, address: netip.MustParseAddr("10.78.0.2")}
	for _, n := range []string{p.host, p.client.namespace, p.server.namespace} {
		if err := host.CreateNamespace(n); err != nil {
			return p, err
		}
		p.created = append(p.created, n)
	}
	if err := host.Sysctl(p.host, "net.ipv4.ip_forward", "1"); err != nil {
		return p, err
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	for i, e := range []*end{&p.client, &p.server} {
		mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
		err := host.CreateVeth(host.Veth{Name: e.link, Namespace: p.host, Peer: "eth0", PeerNamespace: e.namespace, MAC: mac, PeerMAC: e.mac})
		if err != nil {
			return p, err
		}
		link, err := host.LinkNamed(p.host, e.link)
		if err != nil {
			return p, err
		}
		e.ifindex = link.Index
		own := netip.PrefixFrom(e.address, 32)
		err = errors.Join(
			host.AddAddress(e.namespace, "eth0", own),
			host.AddRoute(p.host, host.Route{Destination: own, Link: e.link}),
			host.AddNeighbor(p.host, e.link, e.address, e.mac),
			host.AddNeighbor(e.namespace, "eth0", gateway, mac),
			host.AddRoute(e.namespace, host.Route{Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: gateway, Link: "eth0", OnLink: true}),
		)
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *path) remove() error {
	var errs []error
	for _, n := range p.created {
		errs = append(errs, host.DeleteNamespace(n))
	}
	return errors.Join(errs...)
}

// variant is what stands on the path.
type variant interface {
	name() string
	start() error
	stop() error
}

type unfiltered struct{}

func (unfiltered) name() string { return "unfiltered" }
func (unfiltered) start() error { return nil }
func (unfiltered) stop() error  { return nil }

type nftables struct {
	program string
	path    *path
	rules   int
}

func (n nftables) name() string { return "nftables" }

// start loads established-first and a set of tuples, the form of nftables that
// costs least.
func (n nftables) start() error {
	var elements []string
	for _, port := range []int{portTCP, portConnections} {
		elements = append(elements, fmt.Sprintf("%s . %s . tcp . %d", n.path.client.address, n.path.server.address, port))
	}
	elements = append(elements, fmt.Sprintf("%s . %s . udp . %d", n.path.client.address, n.path.server.address, portUDP))
	for i := range n.rules {
		elements = append(elements, fmt.Sprintf("10.79.%d.%d . 10.80.0.1 . tcp . 443", i>>8&255, i&255))
	}
	script := fmt.Sprintf(`table inet bench {
	set allowed { type ipv4_addr . ipv4_addr . inet_proto . inet_service; elements = { %s } }
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		ct state new ip saddr . ip daddr . ip protocol . th dport @allowed accept
	}
}`, strings.Join(elements, ", "))
	return n.run(script)
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

type enforced struct {
	path  *path
	rules int
	plane *dataplane.Dataplane
	dir   string
}

func (e *enforced) name() string { return "bocage" }

func (e *enforced) start() error {
	dir, err := os.MkdirTemp("", "bocage-bench-")
	if err != nil {
		return err
	}
	e.dir = dir
	return host.In(e.path.host, func() error {
		var err error
		if e.plane, err = dataplane.Open(dataplane.Config{Host: "bench", PinDir: e.pins()}); err != nil {
			return err
		}
		rs := e.ruleset()
		if err := e.plane.Apply(rs); err != nil {
			return err
		}
		for i, end := range []end{e.path.client, e.path.server} {
			if err := e.plane.Attach(dataplane.Attachment{Ifindex: end.ifindex, Port: rs.Ports[i]}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e *enforced) pins() string { return filepath.Join(e.dir, "bpf") }

func (e *enforced) ruleset() *bocage.Ruleset {
	const deny, allow = 1, 2
	rs := &bocage.Ruleset{Generation: 1, Default: deny, Decisions: []bocage.Decision{
		{ID: deny, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: allow, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule}}}
	for i, end := range []end{e.path.client, e.path.server} {
		identity, group := bocage.Identity(101+i), bocage.Group(201+i)
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: group, Enforce: true})
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(end.address, 32), Identity: identity, Group: group, Host: "bench"})
		rs.Ports = append(rs.Ports, bocage.Port{Interface: end.link, Identity: identity, Group: group, MAC: end.mac.String(), Addresses: []netip.Addr{end.address}})
	}
	add := func(protocol bocage.Protocol, port uint16, from, to bocage.Group) {
		rs.Rules = append(rs.Rules, bocage.Rule{From: from, To: to, Protocol: protocol, Ports: bocage.PortRange{First: port, Last: port}, Decision: allow})
	}
	add(bocage.ProtocolTCP, portTCP, 201, 202)
	add(bocage.ProtocolTCP, portConnections, 201, 202)
	add(bocage.ProtocolUDP, portUDP, 201, 202)
	for i := range e.rules {
		add(bocage.ProtocolTCP, 443, bocage.Group(1000+i), 300)
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	return rs
}

func (e *enforced) stop() error {
	var errs []error
	if e.plane != nil {
		errs = append(errs, e.plane.Close())
		e.plane = nil
	}
	return errors.Join(append(errs, dataplane.Remove(e.pins()), os.RemoveAll(e.dir))...)
}

package lab

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// The links that every host has, by their names inside its namespace.
const (
	// Bridge joins the host's workloads and its uplink.
	Bridge = "br0"
	// Uplink is the host's end of the wire, a port of the bridge.
	Uplink = "wire0"
	// Management is the host's end of the link that agents reach controllers on.
	Management = "mgmt0"
	// inside is a workload's own end of its veth.
	inside = "eth0"
)

// Ports that the shop's servers listen on.
const (
	WebPort   = 80
	APIPort   = 8080
	DBPort    = 5432
	CachePort = 6379
)

// subnet is the one Ethernet of all workloads; dark addresses are those that
// no workload has.
func subnet() netip.Prefix { return netip.MustParsePrefix("10.77.0.0/24") }

// machine is one host of the lab.
type machine struct {
	name       string
	namespace  string     // its network namespace
	management netip.Addr // its address on the link to the other host
}

// place is where one workload is and what it is called there.
type place struct {
	group, name string // namespace and name of its resource
	host        string // name of the machine that it is on
	namespace   string // its network namespace
	link        string // the host's end of its veth
	mac         net.HardwareAddr
	ipv4, ipv6  netip.Addr
	labels      map[string]string
}

// topology is the table of the lab. Shop traffic crosses the wire: web and the
// client are on one host, what web asks is on the other.
var topology = []struct {
	name, group, host string
	number            byte // last part of both addresses and of the MAC
	labels            map[string]string
}{
	{"web", "shop", "h1", 10, map[string]string{"app": "web", "part-of": "shop", "env": "prod"}},
	{"client", "users", "h1", 100, map[string]string{"app": "client", "env": "prod"}},
	{"red", "dev", "h1", 200, map[string]string{"app": "red", "env": "dev"}},
	{"api", "shop", "h2", 20, map[string]string{"app": "api", "part-of": "shop", "env": "prod"}},
	{"db", "shop", "h2", 30, map[string]string{"app": "db", "part-of": "shop", "env": "prod"}},
	{"cache", "shop", "h2", 40, map[string]string{"app": "cache", "part-of": "shop", "env": "prod"}},
}

// machines derives the lab's hosts from its name.
func machines(prefix string) []machine {
	return []machine{
		{"h1", prefix + "-h1", netip.MustParseAddr("10.78.0.1")},
		{"h2", prefix + "-h2", netip.MustParseAddr("10.78.0.2")},
	}
}

// places derives the lab's workloads from its name.
func places(prefix string) []place {
	var all []place
	for _, row := range topology {
		v4, v6 := subnet().Addr().As4(), netip.MustParseAddr("fd77::").As16()
		v4[3] = row.number
		// Written so that both addresses look alike: 10.77.0.20 is fd77::20.
		v6[14], v6[15] = row.number/100, row.number/10%10<<4|row.number%10
		all = append(all, place{group: row.group, name: row.name, host: row.host, namespace: prefix + "-" + row.name,
			link: "veth-" + row.name, mac: net.HardwareAddr{0x02, 0x4c, 0x41, 0x42, 0, row.number},
			ipv4: netip.AddrFrom4(v4), ipv6: netip.AddrFrom16(v6), labels: row.labels})
	}
	return all
}

// Hosts returns the names of the lab's hosts.
func (l *Lab) Hosts() []string {
	var names []string
	for _, m := range l.machines {
		names = append(names, m.name)
	}
	return names
}

// HostNamespace returns the network namespace of a host, "h1" or "h2". It
// panics if there is no such host: the lab's table is fixed.
func (l *Lab) HostNamespace(name string) string { return l.machine(name).namespace }

// ManagementAddress returns the address of a host on the link that joins the
// hosts for management.
func (l *Lab) ManagementAddress(name string) netip.Addr { return l.machine(name).management }

func (l *Lab) machine(name string) machine {
	i := slices.IndexFunc(l.machines, func(m machine) bool { return m.name == name })
	if i < 0 {
		panic(fmt.Sprintf("the lab has no host %q", name))
	}
	return l.machines[i]
}

// Namespace returns the network namespace of a workload, named "shop/web" or
// "web". It panics if there is no such workload: the lab's table is fixed.
func (l *Lab) Namespace(workload string) string { return l.place(workload).namespace }

// Address returns a workload's IPv4 address.
func (l *Lab) Address(workload string) netip.Addr { return l.place(workload).ipv4 }

// Address6 returns a workload's IPv6 address.
func (l *Lab) Address6(workload string) netip.Addr { return l.place(workload).ipv6 }

func (l *Lab) place(workload string) place {
	i := slices.IndexFunc(l.places, func(p place) bool { return workload == p.name || workload == p.group+"/"+p.name })
	if i < 0 {
		panic(fmt.Sprintf("the lab has no workload %q", workload))
	}
	return l.places[i]
}

// UnusedAddress returns an address of the workloads' subnet that nobody has.
func (l *Lab) UnusedAddress() netip.Addr { return l.UnusedAddresses(1)[0] }

// UnusedAddresses returns the first so many addresses that nobody has, in
// order, or all of them.
func (l *Lab) UnusedAddresses(count int) []netip.Addr {
	var unused []netip.Addr
	for a := subnet().Addr().Next(); len(unused) < count && subnet().Contains(a.Next()); a = a.Next() {
		if !slices.ContainsFunc(l.places, func(p place) bool { return p.ipv4 == a }) {
			unused = append(unused, a)
		}
	}
	return unused
}

// Workloads declares the workloads as the inventory wants them.
func (l *Lab) Workloads() []*bocage.Workload {
	var all []*bocage.Workload
	for _, p := range l.places {
		all = append(all, &bocage.Workload{
			TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Workload"},
			ObjectMeta: bocage.ObjectMeta{Name: p.name, Namespace: p.group, Labels: maps.Clone(p.labels)},
			Spec: bocage.WorkloadSpec{Host: p.host, Interface: p.link, MAC: p.mac.String(),
				Addresses: []netip.Addr{p.ipv4, p.ipv6}},
		})
	}
	return all
}

// WriteWorkloads writes the workloads as YAML for bocage apply.
func (l *Lab) WriteWorkloads(to io.Writer) error {
	var all []bocage.Resource
	for _, w := range l.Workloads() {
		all = append(all, w)
	}
	return manifest.Write(to, all...)
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (m Machine) networkChecks() []Check {
	here := func(ask func() Answer) func(context.Context) Answer {
		return func(context.Context) Answer { return ask() }
	}
	return []Check{
		{"net.uplinks", Advice, "ip route add default via GATEWAY, if this host is to be reached from elsewhere", here(askUplinks)},
		{"net.bridge-filter", Advice, "sysctl net.bridge.bridge-nf-call-iptables=0 (and -ip6tables, -arptables), or allow the workloads in the FORWARD chain", here(m.askBridgeFilter)},
		{"net.nftables-links", Advice, "see nft list ruleset: a packet must pass these tables and the enforcement points", here(askFirewallLinks)},
		{"net.nftables-drops", Advice, "see nft list ruleset: what a contract allows may still be dropped there", here(askFirewallDrops)},
		{"net.other-programs", Advice, "see tc filter show dev LINK ingress: TCX programs run before them, and what they redirect is not seen again", here(askClassifiers)},
		{"net.xdp", Advice, "see ip link show dev LINK: what an XDP program drops or redirects never reaches an enforcement point", here(askXDP)},
		{"containers.socket", Advice, "start the runtime (systemctl start docker.socket or podman.socket), or declare workloads by hand", m.askContainers},
	}
}

func askUplinks() Answer {
	uplinks, err := Uplinks()
	if err != nil {
		return Unclear(err)
	}
	names := linkNames(uplinks)
	if len(names) == 0 {
		return Ill("no default route leads out of this host")
	}
	return Well("%s, left alone unless --uplink names it", strings.Join(names, ", "))
}

// linkNames names links for people; one that is gone by its number.
func linkNames(indexes []uint32) []string {
	var names []string
	for _, index := range indexes {
		name := strconv.Itoa(int(index))
		if link, err := netlink.LinkByIndex(int(index)); err == nil {
			name = link.Attrs().Name
		}
		names = append(names, name)
	}
	return names
}

// askBridgeFilter: with br_netfilter, bridged packets pass iptables too.
func (m Machine) askBridgeFilter() Answer {
	var on []string
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		value, err := m.read("proc/sys/net/bridge/bridge-nf-call-" + name)
		if errors.Is(err, fs.ErrNotExist) {
			return Well("bridged packets do not pass iptables")
		}
		if err != nil {
			return Unclear(err)
		}
		if value != "0" {
			on = append(on, name)
		}
	}
	if len(on) > 0 {
		return Ill("bridged packets also pass %s, whose FORWARD chain may drop them", strings.Join(on, ", "))
	}
	return Well("bridged packets do not pass iptables")
}

// askFirewallLinks names nftables tables that see the same packets: those of the
// netdev and bridge families sit on the very links that are enforced.
func askFirewallLinks() Answer {
	tables, err := FirewallTables("")
	if err != nil {
		return Unclear(err)
	}
	near := slices.DeleteFunc(slices.Clone(tables), func(t string) bool {
		return !strings.HasPrefix(t, "netdev ") && !strings.HasPrefix(t, "bridge ")
	})
	if len(near) > 0 {
		return Ill("tables on links or bridges: %s", strings.Join(near, ", "))
	}
	return Well("%d tables, none on links or bridges", len(tables))
}

// askFirewallDrops names base chains on the way of routed packets that drop what
// no rule of theirs decides.
func askFirewallDrops() Answer {
	chains, err := FirewallChains()
	if err != nil {
		return Unclear(err)
	}
	var shadows []string
	for _, c := range chains {
		routed := c.Family == "inet" || c.Family == "ip" || c.Family == "ip6"
		if routed && c.Drops && (c.Hook == unix.NF_INET_FORWARD || c.Hook == unix.NF_INET_PRE_ROUTING) {
			shadows = append(shadows, c.String())
		}
	}
	if len(shadows) > 0 {
		return Ill("chains that drop by default what is routed: %s", strings.Join(shadows, ", "))
	}
	return Well("%d base chains, none drops by default what is routed", len(chains))
}

// askClassifiers names links with a clsact qdisc: somebody else's programs run
// there.
func askClassifiers() Answer {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return Unclear(err)
	}
	var links []uint32
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			links = append(links, uint32(q.Attrs().LinkIndex))
		}
	}
	if len(links) > 0 {
		return Ill("classifiers of others on %s", strings.Join(linkNames(links), ", "))
	}
	return Well("no classifiers of others on any link")
}

func askXDP() Answer {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return Unclear(err)
	}
	const getByID, nameAt, ours = 13, 64, "across_drivers" // of wires, where drivers forward
	var names []string
	for _, l := range links {
		x := l.Attrs().Xdp
		if x == nil || !x.Attached {
			continue
		}
		if name, err := bpfName(getByID, x.ProgId, nameAt); err != nil || name != ours {
			names = append(names, fmt.Sprintf("%s (program %d)", l.Attrs().Name, x.ProgId))
		}
	}
	if len(names) > 0 {
		return Ill("XDP programs of others on %s", strings.Join(names, ", "))
	}
	return Well("no XDP program of others on any link")
}

// ContainerSockets are where runtimes answer in Docker's dialect.
func ContainerSockets() []string {
	return []string{"run/docker.sock", "run/podman/podman.sock"}
}

// askContainers asks the runtimes that are installed whether they answer.
func (m Machine) askContainers(ctx context.Context) Answer {
	var answer, silent []string
	for _, name := range ContainerSockets() {
		path := m.path(name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err != nil {
			silent = append(silent, fmt.Sprintf("%s (%v)", path, err))
			continue
		}
		conn.Close()
		answer = append(answer, path)
	}
	switch {
	case len(silent) > 0:
		return Ill("does not answer: %s", strings.Join(silent, ", "))
	case len(answer) == 0:
		return Apart("no container runtime's socket is on this host")
	}
	return Well("%s", strings.Join(answer, ", "))
}

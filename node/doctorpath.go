package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// fullAt is the share of a table, in per cent, from which it is told.
const fullAt = 80

// kernelChecks ask what lies in the kernel.
func (p *patient) kernelChecks() []host.Check {
	kernel, agent := p.needsKernel, p.needsAgent
	return []host.Check{
		{Code: "dataplane.pins", Severity: host.Degraded, Cure: "systemctl restart bocage-agent: it pins again what it holds", Ask: kernel(p.askPins)},
		{Code: "dataplane.layout", Severity: host.Degraded, Cure: "start the agent of this version: it moves the enforcement points over", Ask: kernel(p.askLayout)},
		{Code: "dataplane.links", Severity: host.Degraded, Cure: "the agent attaches it again within seconds; without one, systemctl start bocage-agent", Ask: kernel(p.askLinks)},
		{Code: "dataplane.others", Severity: host.Degraded, Cure: "see bpftool net: what passes or redirects ahead of an enforcement point is not judged by it; restart the agent last, so that it comes first", Ask: kernel(p.askOthers)},
		{Code: "dataplane.lost", Severity: host.Degraded, Cure: "the reader is too slow, or was away: keep the agent running, and give it CPU", Ask: kernel(p.askLost)},
		{Code: "dataplane.fill", Severity: host.Degraded, Cure: "give the agent larger tables (--table-entries) before they are full: what does not fit is not put in force", Ask: kernel(p.askFill)},
		{Code: "dataplane.names", Severity: host.Degraded, Cure: "allow fewer DNS names, or narrower ones, to the workloads that ask for most: what is not learned is refused", Ask: kernel(p.askNames)},
		{Code: "agent.ports-missing", Severity: host.Degraded, Cure: "start the workload, or mend spec.interface of its Workload", Ask: agent(p.askMissing)},
		{Code: "agent.ports-down", Severity: host.Degraded, Cure: "ip link set LINK up", Ask: agent(p.askDown)},
		{Code: "agent.uncovered", Severity: host.Degraded, Cure: "declare a Workload with spec.host and spec.interface for each, or let discovery do it", Ask: agent(p.askUncovered)},
		{Code: "events.lost", Severity: host.Degraded, Cure: "see agent.connected: events wait on disk until a controller takes them, and are counted as lost when that is full", Ask: agent(p.askEventsLost)},
	}
}

func (p *patient) askPins() host.Answer {
	for _, l := range p.kernel.Layouts {
		if len(l.MissingMaps) > 0 {
			return host.Ill("maps are not pinned any more: %s", strings.Join(l.MissingMaps, ", "))
		}
		if len(l.MissingPrograms) > 0 {
			return host.Ill("programs are not pinned any more: %s", strings.Join(l.MissingPrograms, ", "))
		}
	}
	return host.Well("everything is pinned in %s", p.cfg.PinDir())
}

func (p *patient) askLayout() host.Answer {
	var current, other []string
	for _, l := range p.kernel.Layouts {
		switch {
		case l.Draft:
			other = append(other, l.Name+", whose making was cut short")
		case l.Current:
			current = append(current, l.Name)
		default:
			other = append(other, fmt.Sprintf("%s with %d links, of another version or size", l.Name, len(l.Links)))
		}
	}
	if len(other) > 0 {
		return host.Ill("beside what this program knows lies: %s", strings.Join(other, "; "))
	}
	if len(current) == 0 {
		return host.Ill("%s holds no state", p.cfg.PinDir())
	}
	return host.Well("%s, which this program knows", current[0])
}

func (p *patient) askLinks() host.Answer {
	var faults []string
	have, count := map[uint32]int{}, 0
	for _, layout := range p.kernel.Layouts {
		for _, l := range layout.Links {
			count++
			switch {
			case l.Attached:
				have[l.Ifindex]++
			case l.Interface != "":
				faults = append(faults, l.Program+" is detached from "+l.Interface)
			}
		}
	}
	for _, port := range p.report.Ports {
		if have[port.Ifindex] < 2 {
			faults = append(faults, fmt.Sprintf("%s has %d of 2 programs", port.Interface, have[port.Ifindex]))
		}
	}
	if len(faults) > 0 {
		return host.Ill("%s", strings.Join(faults, "; "))
	}
	return host.Well("%d links, all attached", count)
}

// askOthers: a program behind an enforcement point is somebody's own business, one
// ahead of it can take packets away from it.
func (p *patient) askOthers() host.Answer {
	var ahead []string
	behind := 0
	for _, layout := range p.kernel.Layouts {
		for _, l := range layout.Links {
			if l.Ahead > 0 {
				ahead = append(ahead, fmt.Sprintf("%s of %s", l.Program, l.Interface))
			}
			behind += l.Others - l.Ahead
		}
	}
	if len(ahead) > 0 {
		return host.Ill("programs of others come before %s", strings.Join(ahead, ", "))
	}
	return host.Well("enforcement points come first; %d programs of others behind them", behind)
}

func (p *patient) askLost() host.Answer {
	if p.kernel.Lost > 0 {
		return host.Ill("%d of %d events found no room in the ring buffer", p.kernel.Lost, p.kernel.Offered)
	}
	return host.Well("none of %d events", p.kernel.Offered)
}

func (p *patient) askFill() host.Answer {
	var full []string
	fullest, share := "", -1
	for _, f := range p.kernel.Fill {
		if f.Max == 0 {
			continue
		}
		s := int(100 * uint64(f.Rows) / uint64(f.Max))
		if s > share {
			fullest, share = f.Table, s
		}
		if s >= fullAt {
			full = append(full, fmt.Sprintf("%s %d %% (%d of %d)", f.Table, s, f.Rows, f.Max))
		}
	}
	if len(full) > 0 {
		return host.Ill("%s", strings.Join(full, ", "))
	}
	return host.Well("the fullest is %s with %d %%", fullest, max(share, 0))
}

func (p *patient) askNames() host.Answer {
	if p.kernel.NamesUnlearned > 0 {
		return host.Ill("%d addresses and questions of DNS names found no room, or took that of others; %d answers were read", p.kernel.NamesUnlearned, p.kernel.NamesAnswered)
	}
	return host.Well("the addresses of %d answers found room", p.kernel.NamesAnswered)
}

func (p *patient) askMissing() host.Answer {
	if len(p.report.Missing) == 0 {
		return host.Well("every interface that policy names is there")
	}
	var names []string
	for _, port := range p.report.Missing {
		names = append(names, port.Interface+" of "+port.Workload)
	}
	return host.Ill("not there: %s", strings.Join(names, ", "))
}

func (p *patient) askDown() host.Answer {
	interfaces, err := net.Interfaces()
	if err != nil {
		return host.Unclear(err)
	}
	running := map[uint32]bool{}
	for _, i := range interfaces {
		running[uint32(i.Index)] = i.Flags&net.FlagRunning != 0
	}
	var down []string
	for _, port := range p.report.Ports {
		if up, there := running[port.Ifindex]; there && !up {
			down = append(down, port.Interface+" of "+port.Workload)
		}
	}
	if len(down) > 0 {
		return host.Ill("down: %s", strings.Join(down, ", "))
	}
	return host.Well("%d enforcement points are up", len(p.report.Ports))
}

// askUncovered names links of workloads that nothing is enforced on.
func (p *patient) askUncovered() host.Answer {
	covered := map[uint32]bool{}
	for _, port := range p.report.Ports {
		covered[port.Ifindex] = true
	}
	for _, f := range []FunctionReport{p.report.Inspection, p.report.Decoys} {
		for _, index := range f.Links {
			covered[index] = true
		}
	}
	var bare []string
	for _, l := range p.links {
		if (l.Kind == "veth" || l.Kind == "tuntap") && !covered[l.Index] && !slices.Contains(p.report.Hidden, l.Name) {
			bare = append(bare, l.Name)
		}
	}
	if len(bare) > 0 {
		const most = 8
		more := ""
		if len(bare) > most {
			more = fmt.Sprintf(" and %d more", len(bare)-most)
		}
		return host.Ill("no enforcement point on %s%s", strings.Join(bare[:min(len(bare), most)], ", "), more)
	}
	return host.Well("every workload's interface is an enforcement point")
}

func (p *patient) askEventsLost() host.Answer {
	e := p.report.Events
	if e.Lost > 0 {
		return host.Ill("%d of %d records were lost; %d batches wait", e.Lost, e.Offered, e.Waiting)
	}
	return host.Well("none of %d records; %d batches wait", e.Offered, e.Waiting)
}

// pathChecks ask what packets meet beside the enforcement points.
func (p *patient) pathChecks() []host.Check {
	agent := p.needsAgent
	return []host.Check{
		{Code: "net.forwarding", Severity: host.Degraded, Cure: "sysctl net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", Ask: agent(p.askForwarding)},
		{Code: "net.rp-filter", Severity: host.Degraded, Cure: "sysctl net.ipv4.conf.LINK.rp_filter=2, or route the workload's address by its own interface", Ask: agent(p.askReversePath)},
		{Code: "inspection.mtu", Severity: host.Degraded, Cure: "give the workloads' interfaces a smaller MTU; the agent makes the engine's links as large as they are, within seconds, up to 32,666 bytes", Ask: agent(p.askMTU)},
		{Code: "inspection.offloads", Severity: host.Degraded, Cure: "ethtool -K LINK tso off gso off tx off, or restart the agent: the engine takes no super-frames", Ask: agent(p.askOffloads)},
		{Code: "admin.sessions", Severity: host.Advice, Cure: "name the interface with --uplink only if it must be enforced on", Ask: agent(p.askSessions)},
	}
}

func sysctl(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(value)), err
}

// askForwarding: workloads that are routed need a host that routes.
func (p *patient) askForwarding() host.Answer {
	four, six := 0, 0
	for _, port := range p.report.Ports {
		if l, ok := p.linkOf(port.Ifindex); !ok || l.Master != 0 {
			continue // bridged
		}
		for _, text := range port.Addresses {
			if address, err := netip.ParseAddr(text); err == nil && address.Is4() {
				four++
			} else if err == nil {
				six++
			}
		}
	}
	var off []string
	for _, f := range []struct {
		workloads int
		name      string
	}{{four, "net/ipv4/ip_forward"}, {six, "net/ipv6/conf/all/forwarding"}} {
		if f.workloads == 0 {
			continue
		}
		value, err := sysctl(f.name)
		if err != nil {
			return host.Unclear(err)
		}
		if value == "0" {
			off = append(off, strings.ReplaceAll(f.name, "/", "."))
		}
	}
	if len(off) > 0 {
		return host.Ill("%s is 0, and workloads are routed by this host", strings.Join(off, ", "))
	}
	return host.Well("%d addresses of workloads are routed", four+six)
}

// askReversePath: a strict reverse path filter drops what comes by another way
// than answers would go.
func (p *patient) askReversePath() host.Answer {
	all, err := sysctl("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return host.Unclear(err)
	}
	var dropped []string
	for _, port := range p.report.Ports {
		l, ok := p.linkOf(port.Ifindex)
		if !ok || l.Master != 0 {
			continue
		}
		own, err := sysctl("net/ipv4/conf/" + l.Name + "/rp_filter")
		if err != nil || max(all, own) != "1" {
			continue // the larger of both counts: 0 off, 1 strict, 2 loose
		}
		for _, text := range port.Addresses {
			address, err := netip.ParseAddr(text)
			if err != nil || !address.Is4() {
				continue
			}
			if way, err := host.LinkTowards(address); err != nil || way.Index != l.Index {
				dropped = append(dropped, fmt.Sprintf("%s from %s", text, l.Name))
			}
		}
	}
	if len(dropped) > 0 {
		return host.Ill("a strict rp_filter drops %s, since answers would leave by another interface", strings.Join(dropped, ", "))
	}
	return host.Well("no workload's packets are dropped by it")
}

// askMTU: a packet that fits a workload's interface must fit the engine's.
func (p *patient) askMTU() host.Answer {
	largest := host.Link{}
	for _, port := range p.report.Ports {
		if l, ok := p.linkOf(port.Ifindex); ok && l.MTU > largest.MTU {
			largest = l
		}
	}
	var small []string
	for _, index := range p.report.Inspection.Links {
		if l, ok := p.linkOf(index); ok && l.MTU < largest.MTU {
			small = append(small, fmt.Sprintf("%s %d", l.Name, l.MTU))
		}
	}
	if len(small) > 0 {
		return host.Ill("%s has %d bytes, the engine's links have %s", largest.Name, largest.MTU, strings.Join(small, ", "))
	}
	if len(p.report.Inspection.Links) == 0 {
		return host.Apart("no engine is there")
	}
	return host.Well("the engine's links take %d bytes", largest.MTU)
}

func (p *patient) askOffloads() host.Answer {
	if len(p.report.Inspection.Links) == 0 {
		return host.Apart("no engine is there")
	}
	var on []string
	for _, index := range p.report.Inspection.Links {
		l, ok := p.linkOf(index)
		if !ok {
			continue
		}
		features, err := host.Offloads(l.Name)
		if err != nil {
			return host.Unclear(err)
		}
		if len(features) > 0 {
			on = append(on, l.Name+": "+strings.Join(features, " "))
		}
	}
	if len(on) > 0 {
		return host.Ill("offloads are on at the engine's links: %s", strings.Join(on, "; "))
	}
	return host.Well("the engine's links carry packets as they are on the wire")
}

// askSessions: an enforcement point on the administrator's own way is a risk that
// somebody should know of.
func (p *patient) askSessions() host.Answer {
	var on []string
	for _, s := range p.report.Sessions {
		if slices.ContainsFunc(p.report.Ports, func(port PortReport) bool { return port.Interface == s.Interface }) {
			on = append(on, s.String())
		}
	}
	if len(on) > 0 {
		return host.Ill("pass an enforcement point: %s; a ruleset that would cut them is not put in force", strings.Join(on, ", "))
	}
	return host.Well("%d sessions, none passes an enforcement point", len(p.report.Sessions))
}

// What must be free where state lies.
const (
	freeBytes = 256 << 20
	freeShare = 5 // per cent
	clockSlip = 5 * time.Second
)

// diskChecks ask what lies on disk.
func (p *patient) diskChecks() []host.Check {
	state := func(ask func() host.Answer) func(context.Context) host.Answer {
		return func(context.Context) host.Answer {
			if _, err := os.Stat(p.state); errors.Is(err, fs.ErrNotExist) {
				return host.Apart("nothing is kept in %s", p.state)
			}
			return ask()
		}
	}
	return []host.Check{
		{Code: "disk.space", Severity: host.Degraded, Cure: "make room on the file system of " + p.state + ": what cannot be kept waits, then is counted as lost", Ask: state(p.askSpace)},
		{Code: "disk.writable", Severity: host.Degraded, Cure: "mount -o remount,rw its file system, and look at dmesg for why it is not", Ask: state(p.askWritable)},
		{Code: "disk.permissions", Severity: host.Degraded, Cure: "chmod 0700 " + p.state + ": keys lie there", Ask: state(p.askPermissions)},
		{Code: "disk.spool", Severity: host.Degraded, Cure: "see agent.connected: events are sent when a controller takes them", Ask: state(p.askSpool)},
		{Code: "clock.backward", Severity: host.Degraded, Cure: "set the clock right (chronyc makestep): what was signed lies in its future", Ask: state(p.askBackward)},
	}
}

func (p *patient) askSpace() host.Answer {
	var st unix.Statfs_t
	if err := unix.Statfs(p.state, &st); err != nil {
		return host.Unclear(err)
	}
	free, all := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	if free < freeBytes || free*100 < all*freeShare {
		return host.Ill("%d MiB of %d are free at %s", free>>20, all>>20, p.state)
	}
	if st.Files > 0 && st.Ffree*100 < st.Files*freeShare {
		return host.Ill("%d of %d files are free at %s", st.Ffree, st.Files, p.state)
	}
	return host.Well("%d MiB of %d are free at %s", free>>20, all>>20, p.state)
}

func (p *patient) askWritable() host.Answer {
	var st unix.Statfs_t
	if err := unix.Statfs(p.state, &st); err != nil {
		return host.Unclear(err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return host.Ill("the file system of %s is mounted read-only", p.state)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, p.state, unix.W_OK|unix.X_OK, unix.AT_EACCESS); errors.Is(err, fs.ErrPermission) {
		return withoutRights(fmt.Errorf("write in %s: %w", p.state, err)) // the folder is its users' own
	} else if err != nil {
		return host.Ill("write in %s: %v", p.state, err)
	}
	return host.Well("%s can be written", p.state)
}

func (p *patient) askPermissions() host.Answer {
	info, err := os.Stat(p.state)
	if err != nil {
		return host.Unclear(err)
	}
	if info.Mode().Perm()&0o066 != 0 { // others may pass through, where each role has a user of its own
		return host.Ill("%s has mode %#o", p.state, info.Mode().Perm())
	}
	for _, role := range []string{"agent", "controller"} {
		dir := filepath.Join(p.state, role)
		of, err := os.Stat(dir)
		if err == nil && of.Mode().Perm()&0o077 != 0 && info.Mode().Perm()&0o011 != 0 {
			return host.Ill("%s has mode %#o", dir, of.Mode().Perm()).CuredBy("chmod 0700 %s: keys lie there", dir)
		}
	}
	return host.Well("%s has mode %#o", p.state, info.Mode().Perm())
}

func (p *patient) askSpool() host.Answer {
	var bytes int64
	files := 0
	err := filepath.WalkDir(p.cfg.agentDir("spool"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes, files = bytes+info.Size(), files+1
		}
		return nil // sent meanwhile
	})
	if errors.Is(err, fs.ErrNotExist) {
		return host.Apart("no agent has spooled anything here")
	}
	if err != nil {
		return host.Unclear(err)
	}
	if bytes*100 >= spoolBytes*fullAt {
		return host.Ill("%d batches of events fill %d of %d MiB", files, bytes>>20, spoolBytes>>20)
	}
	return host.Well("%d batches of events wait in %d of %d MiB", files, bytes>>20, spoolBytes>>20)
}

// askBackward: a clock that went back makes what was signed since invalid.
func (p *patient) askBackward() host.Answer {
	latest, name := time.Time{}, ""
	for _, dir := range []string{p.cfg.agentDir("identity"), p.cfg.controllerDir("authority")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if info, err := entry.Info(); err == nil && info.ModTime().After(latest) {
				latest, name = info.ModTime(), filepath.Join(dir, entry.Name())
			}
		}
	}
	if ahead := time.Until(latest); ahead > clockSlip {
		return host.Ill("%s was written %s from now: the clock went back", name, ahead.Round(time.Second))
	}
	return host.Well("nothing was written in its future")
}

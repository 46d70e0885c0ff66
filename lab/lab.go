package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage/host"
)

// stateDir holds a folder for each lab. It is in /run, so that what a lab wrote
// ends with the machine's uptime, as its namespaces do.
const stateDir = "/run/bocage-lab"

// firstNames is a file in a lab's folder: there were no named namespaces on the
// machine before the lab, not even a directory for their names.
const firstNames = "first-names"

// Config says what lab to build. Its zero value is a lab named "lab".
type Config struct {
	// Prefix names the lab: every namespace's name begins with it and a dash.
	// At most 12 lower-case letters and digits. Default: "lab".
	Prefix string
	// Program is the bocage binary, whose hidden subcommands lab-api and lab-load
	// the workloads run. Default: the running executable.
	Program string
	// Rate is how many requests per second the client makes. Default: 50.
	Rate int
	// Logger takes what is worth knowing. Default: none.
	Logger *slog.Logger
}

// Lab is a data center that is standing.
type Lab struct {
	config   Config
	machines []machine
	places   []place
	servers  []*server // those that this process started
}

// Dir is the folder that everything a lab writes is in: servers' files and logs.
func Dir(prefix string) string { return filepath.Join(stateDir, prefix) }

// PinDir is the folder in the bpffs for what enforces on a lab's hosts, where whoever
// runs them there says so.
func PinDir(prefix string) string { return filepath.Join(host.BPFFS, prefix) }

// Up makes a lab and starts everything in it. If it cannot, nothing is left.
func Up(ctx context.Context, config Config) (*Lab, error) {
	l, err := New(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := l.Start(ctx); err != nil {
		return nil, errors.Join(err, l.Down(ctx))
	}
	return l, nil
}

// New makes the hosts and what joins them, still without workloads, so that
// agents may be started before or after [Lab.Start]. If it cannot, nothing is
// left.
func New(ctx context.Context, config Config) (*Lab, error) {
	l, err := describe(config)
	if err != nil {
		return nil, err
	}
	taken, err := namespacesOf(l.config.Prefix)
	if err != nil {
		return nil, fmt.Errorf("make lab %s: %w", l.config.Prefix, err)
	}
	if len(taken) > 0 {
		return nil, fmt.Errorf("lab %s is standing already (%s): take it down first with bocage lab down: %w",
			l.config.Prefix, strings.Join(taken, ", "), fs.ErrExist)
	}
	if err := l.buildHosts(); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab %s: %w", l.config.Prefix, err), l.Down(ctx))
	}
	return l, nil
}

// Open returns a lab that another process started.
func Open(config Config) (*Lab, error) {
	l, err := describe(config)
	if err != nil {
		return nil, err
	}
	for _, p := range l.places {
		if !host.NamespaceExists(p.namespace) {
			return nil, fmt.Errorf("lab %s has no namespace %s: start it with bocage lab up: %w", l.config.Prefix, p.namespace, fs.ErrNotExist)
		}
	}
	return l, nil
}

// describe fills in the defaults; nothing is made.
func describe(config Config) (*Lab, error) {
	if config.Prefix == "" {
		config.Prefix = "lab"
	}
	if err := validPrefix(config.Prefix); err != nil {
		return nil, err
	}
	if config.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program that the lab's workloads run: %w", err)
		}
		config.Program = self
	}
	if config.Rate == 0 {
		config.Rate = 50
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Lab{config: config, machines: machines(config.Prefix), places: places(config.Prefix)}, nil
}

// ValidName reports whether a lab may have a name: at most 12 lower-case letters and
// digits, a letter first.
func ValidName(name string) bool {
	return regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`).MatchString(name)
}

// Exists reports whether something of a lab is there, whole or not.
func Exists(name string) (bool, error) {
	namespaces, err := namespacesOf(name)
	if err != nil || len(namespaces) > 0 {
		return err == nil, err
	}
	if _, err = os.Stat(Dir(name)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// validPrefix keeps a name from meaning another lab's namespaces, or a path.
func validPrefix(prefix string) error {
	if !ValidName(prefix) {
		return fmt.Errorf("lab name %q: want at most 12 lower-case letters and digits, a letter first: %w", prefix, fs.ErrInvalid)
	}
	return nil
}

// namespacesOf lists the network namespaces of a lab, those of other programs'
// engines on its hosts among them.
func namespacesOf(prefix string) ([]string, error) {
	all, err := host.Namespaces()
	return slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, prefix+"-") }), err
}

// buildHosts makes the lab's folder, its hosts, and the two links between them.
func (l *Lab) buildHosts() error {
	first := !host.NamespaceDirExists()
	if err := os.MkdirAll(Dir(l.config.Prefix), 0o755); err != nil {
		return err
	}
	if first {
		// So that Down, maybe in another process, leaves the machine without one.
		if err := os.WriteFile(filepath.Join(Dir(l.config.Prefix), firstNames), nil, 0o644); err != nil {
			return err
		}
	}
	for _, m := range l.machines {
		if err := host.CreateNamespace(m.namespace); err != nil {
			return err
		}
		if err := quieten(m.namespace); err != nil {
			return err
		}
		if err := host.CreateBridge(m.namespace, Bridge); err != nil {
			return err
		}
	}
	return l.joinHosts()
}

// quieten keeps a host out of its workloads' network: it only forwards frames,
// has no address of its own among them, and shows them to no packet filter.
func quieten(namespace string) error {
	if err := host.Sysctl(namespace, "net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	for _, key := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "net.bridge.bridge-nf-call-arptables"} {
		// Absent unless somebody loaded the module for it.
		if err := host.Sysctl(namespace, key, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// joinHosts makes the wire and the link for management.
func (l *Lab) joinHosts() error {
	a, b := l.machines[0], l.machines[1]
	for _, link := range []string{Uplink, Management} {
		if err := host.CreateVeth(host.Veth{Name: link, Namespace: a.namespace, Peer: link, PeerNamespace: b.namespace}); err != nil {
			return err
		}
	}
	for _, m := range l.machines {
		if err := host.SetMaster(m.namespace, Uplink, Bridge); err != nil {
			return err
		}
		if err := host.AddAddress(m.namespace, Management, netip.PrefixFrom(m.management, 30)); err != nil {
			return err
		}
	}
	return nil
}

// buildWorkload makes one workload's namespace and joins it to its host's bridge.
func (l *Lab) buildWorkload(p place) error {
	if err := host.CreateNamespace(p.namespace); err != nil {
		return err
	}
	settings := []struct{ key, value string }{
		{"net.ipv6.conf.default.accept_dad", "0"},    // the addresses are ours: no second of probing
		{"net.ipv6.conf.default.accept_ra", "0"},     // nor a router to look for
		{"net.ipv4.ip_unprivileged_port_start", "0"}, // servers need no privilege for port 80
	}
	for _, s := range settings {
		if err := host.Sysctl(p.namespace, s.key, s.value); err != nil {
			return err
		}
	}
	on := l.HostNamespace(p.host)
	if err := host.CreateVeth(host.Veth{Name: p.link, Namespace: on, Peer: inside, PeerNamespace: p.namespace, PeerMAC: p.mac}); err != nil {
		return err
	}
	if err := host.SetMaster(on, p.link, Bridge); err != nil {
		return err
	}
	if err := host.AddAddress(p.namespace, inside, netip.PrefixFrom(p.ipv4, subnet().Bits())); err != nil {
		return err
	}
	return host.AddAddress(p.namespace, inside, netip.PrefixFrom(p.ipv6, 64))
}

// Down takes the lab down as the function [Down] does. Servers that this process
// started have been waited for.
func (l *Lab) Down(ctx context.Context) error {
	err := Down(l.config.Prefix)
	for _, s := range l.servers {
		select {
		case <-s.done:
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("take down lab %s: await the end of %s: %w", l.config.Prefix, s.name, ctx.Err()))
		}
	}
	l.servers = nil
	return err
}

// Down removes every trace of a lab that its name leads to: the processes in
// its namespaces, whoever started them, the namespaces with their links, and
// its folder. It works after a crash and is no error if nothing is there.
func Down(prefix string) error {
	if err := validPrefix(prefix); err != nil {
		return err
	}
	namespaces, err := namespacesOf(prefix)
	if err != nil {
		return fmt.Errorf("take down lab %s: %w", prefix, err)
	}
	errs := make([]error, len(namespaces))
	var killed sync.WaitGroup
	for i, name := range namespaces {
		killed.Go(func() { errs[i] = host.Kill(name) })
	}
	killed.Wait()
	for _, name := range namespaces {
		errs = append(errs, host.DeleteNamespace(name))
	}
	if _, err := os.Stat(filepath.Join(Dir(prefix), firstNames)); err == nil {
		errs = append(errs, host.RemoveNamespaceDir())
	}
	errs = append(errs, os.RemoveAll(Dir(prefix)))
	if err := os.Remove(stateDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !others(stateDir) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down lab %s: %w", prefix, err)
	}
	return nil
}

// others says whether a folder still holds something: another lab.
func others(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}

// await calls try at short intervals until it succeeds, the context ends, or
// stop yields an error. The last error of try says what was missing.
func await(ctx context.Context, stop <-chan error, try func() error) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case early := <-stop:
			return early
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

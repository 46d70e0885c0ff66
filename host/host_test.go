package host_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

func TestRootNamespaceLifecycle(t *testing.T) {
	hosttest.Root(t)
	name := hosttest.Name(t)
	if err := host.CreateNamespace(name); err != nil {
		t.Fatal(err)
	}
	defer host.DeleteNamespace(name)
	if err := host.CreateNamespace(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second creation: %v, want an error that is fs.ErrExist", err)
	}
	if names, err := host.Namespaces(); err != nil || !slices.Contains(names, name) {
		t.Errorf("Namespaces() = %v, %v; want %s among them", names, err, name)
	}
	links, err := host.Links(name)
	if err != nil || len(links) != 1 || links[0].Name != "lo" || !links[0].Up {
		t.Errorf("a new namespace has links %+v, %v; want lo, up", links, err)
	}
	for range 2 {
		if err := host.DeleteNamespace(name); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if host.NamespaceExists(name) {
		t.Error("exists after its deletion")
	}
	if _, err := host.Links(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("links of a deleted namespace: %v, want an error that is fs.ErrNotExist", err)
	}
}

// A creation that died between making the file and mounting on it must not
// block the name for ever.
func TestRootNamespaceAfterCrash(t *testing.T) {
	hosttest.Namespace(t) // makes the directory
	name := hosttest.Name(t)
	file := host.NamespaceDir + "/" + name
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	defer host.DeleteNamespace(name)
	if host.NamespaceExists(name) {
		t.Error("an empty file counts as a namespace")
	}
	if err := host.CreateNamespace(name); err != nil {
		t.Errorf("create over the remains: %v", err)
	}
}

// In a mount namespace of its own, where nobody else has names.
func TestRootNamespaceDirIsRemovedWhenEmpty(t *testing.T) {
	hosttest.Root(t)
	const alone = "BOCAGE_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What was mounted below /run before is hidden, and goes when others let it go.
	mounts := func() int {
		text, err := os.ReadFile("/proc/self/mountinfo")
		must(err)
		ours := map[string]bool{}
		for line := range strings.Lines(string(text)) { // a mount comes after its parent
			f := strings.Fields(line)
			if id, parent, on := f[0], f[1], f[4]; ours[parent] || on == "/run" && strings.Contains(line, " - tmpfs tmpfs ") {
				if on == "/run" {
					clear(ours)
				}
				ours[id] = true
			}
		}
		return len(ours)
	}
	before := mounts()
	must(host.RemoveNamespaceDir()) // absent
	if host.NamespaceDirExists() {
		t.Fatal("there is a directory of names before any was made")
	}
	must(host.CreateNamespace("bct-a"))
	must(host.RemoveNamespaceDir())
	if !host.NamespaceExists("bct-a") {
		t.Fatal("a directory with a name in it was removed")
	}
	must(host.DeleteNamespace("bct-a"))
	// Creations and removals at the same time: no creation fails.
	var racing sync.WaitGroup
	for i := range 4 {
		racing.Go(func() {
			name := "bct-race" + string(rune('a'+i))
			for range 20 {
				if err := errors.Join(host.CreateNamespace(name), host.DeleteNamespace(name), host.RemoveNamespaceDir()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	racing.Wait()
	must(host.RemoveNamespaceDir())
	if host.NamespaceDirExists() {
		t.Error("the empty directory is still there")
	}
	if now := mounts(); now != before {
		t.Errorf("%d mounts, %d before", now, before)
	}
}

func TestNamespaceNames(t *testing.T) {
	for _, name := range []string{".", "..", "a/b", "../x", "a\x00", strings.Repeat("n", 256)} {
		if err := host.CreateNamespace(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("create %q: %v, want fs.ErrInvalid", name, err)
		}
		if err := host.In(name, func() error { return nil }); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("enter %q: %v, want fs.ErrInvalid", name, err)
		}
	}
}

func TestRootInComesBack(t *testing.T) {
	hosttest.Root(t)
	name := hosttest.Namespace(t)
	other := hosttest.Namespace(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	at := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	home := at()
	var inside, deeper string
	err := host.In(name, func() error {
		inside = at()
		return host.In(other, func() error { deeper = at(); return fs.ErrClosed })
	})
	if !errors.Is(err, fs.ErrClosed) {
		t.Errorf("In returned %v, not what fn did", err)
	}
	if inside == home || deeper == inside || at() != home {
		t.Errorf("home %s, inside %s, deeper %s, afterwards %s", home, inside, deeper, at())
	}
	func() {
		defer func() {
			if recover() != "boom" {
				t.Error("a panic did not reach the caller")
			}
		}()
		host.In(name, func() error { panic("boom") })
	}()
	exited := make(chan bool, 1)
	go func() {
		defer func() { exited <- true }()
		host.In(name, func() error { runtime.Goexit(); return nil })
		exited <- false
	}()
	if !<-exited {
		t.Error("Goexit did not continue in the caller")
	}
}

func TestRootStartAndPids(t *testing.T) {
	name := hosttest.Namespace(t)
	cmd := exec.Command("sleep", "60")
	if err := host.Start(name, cmd); err != nil {
		t.Fatal(err)
	}
	if pids, err := host.Pids(name); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Pids = %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if err := host.Kill(name); err != nil {
		t.Error(err)
	}
	if pids, err := host.Pids(name); err != nil || len(pids) != 0 {
		t.Errorf("after Kill, Pids = %v, %v", pids, err)
	}
	cmd.Wait()
	if err := host.Kill("bct-absent"); err != nil {
		t.Errorf("killing in an absent namespace: %v", err)
	}
}

// Two namespaces joined by a bridge in a third talk over IPv4 and IPv6 at once.
func TestRootVethsOnABridge(t *testing.T) {
	sw, a, b := hosttest.Namespace(t), hosttest.Namespace(t), hosttest.Namespace(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(host.CreateBridge(sw, "br0"))
	macs := map[string]net.HardwareAddr{a: {2, 0, 0, 0, 0, 0xa}, b: {2, 0, 0, 0, 0, 0xb}}
	for i, ns := range []string{a, b} {
		port := []string{"port-a", "port-b"}[i]
		must(host.CreateVeth(host.Veth{Name: port, Namespace: sw, Peer: "eth0", PeerNamespace: ns, PeerMAC: macs[ns], MTU: 1400}))
		must(host.SetMaster(sw, port, "br0"))
		must(host.DisableOffloads(sw, port))
		must(host.DisableOffloads(ns, "eth0"))
		must(host.AddAddress(ns, "eth0", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 9, byte(i + 1)}), 24)))
		must(host.AddAddress(ns, "eth0", netip.PrefixFrom(netip.MustParseAddr([]string{"fd09::1", "fd09::2"}[i]), 64)))
	}
	must(host.AddNeighbor(a, "eth0", netip.MustParseAddr("10.9.9.2"), macs[b]))
	must(host.AddNeighbor(a, "eth0", netip.MustParseAddr("fd09::2"), macs[b]))
	must(host.AddRoute(a, host.Route{Destination: netip.MustParsePrefix("10.8.0.0/16"), Gateway: netip.MustParseAddr("10.9.9.2"), Link: "eth0"}))
	must(host.AddRoute(a, host.Route{Destination: netip.MustParsePrefix("fd08::/16"), Gateway: netip.MustParseAddr("fd77::1"), Link: "eth0", OnLink: true}))
	for range 2 { // again is no error
		must(host.AddRoute(b, host.Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Link: "lo", Table: 100, Local: true}))
		must(host.AddRoute(b, host.Route{Destination: netip.MustParsePrefix("::/0"), Link: "lo", Table: 100, Local: true}))
		must(host.AddRule(b, host.Rule{IncomingLink: "eth0", Table: 100, Priority: 50}))
		must(host.AddRule(b, host.Rule{IncomingLink: "eth0", Table: 100, Priority: 50, IPv6: true}))
	}
	must(host.Sysctl(b, "net.ipv4.ip_forward", "1"))

	port, err := host.LinkNamed(sw, "port-a")
	must(err)
	bridge, err := host.LinkNamed(sw, "br0")
	must(err)
	inside, err := host.LinkNamed(a, "eth0")
	must(err)
	if port.Master != bridge.Index || port.Kind != "veth" || port.MTU != 1400 || !port.Up || port.Peer != inside.Index ||
		!slices.Equal(inside.MAC, macs[a]) {
		t.Errorf("port %+v, bridge %+v, inside %+v", port, bridge, inside)
	}
	for _, address := range []string{"10.9.9.2:7000", "[fd09::2]:7000"} {
		exchange(t, a, b, address)
	}
	must(host.DeleteLink(sw, "port-a"))
	must(host.DeleteLink(sw, "port-a"))
	if _, err := host.LinkNamed(a, "eth0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other end of a deleted veth: %v, want fs.ErrNotExist", err)
	}
	if ethtool, err := exec.LookPath("ethtool"); err == nil {
		cmd := exec.Command(ethtool, "-k", "eth0")
		var out bytes.Buffer
		cmd.Stdout = &out
		must(host.Start(b, cmd))
		must(cmd.Wait())
		for _, off := range []string{"tx-checksumming", "scatter-gather", "tcp-segmentation-offload",
			"generic-segmentation-offload", "generic-receive-offload", "tx-udp-segmentation"} {
			if !strings.Contains(out.String(), off+": off") {
				t.Errorf("%s is not off:\n%s", off, out.String())
			}
		}
	}
}

// exchange opens a connection from one namespace to an address in another.
func exchange(t *testing.T, from, to, address string) {
	t.Helper()
	var listener net.Listener
	if err := host.In(to, func() (err error) { listener, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Write([]byte("hello"))
			conn.Close()
		}
	}()
	err := host.In(from, func() error {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		got := make([]byte, 5)
		_, err = conn.Read(got)
		if err == nil && string(got) != "hello" {
			t.Errorf("%s said %q", address, got)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", address, err)
	}
}

func TestRootSysctlIsTheNamespaces(t *testing.T) {
	a, b := hosttest.Namespace(t), hosttest.Namespace(t)
	if err := host.Sysctl(a, "net.ipv4.ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	for ns, want := range map[string]string{a: "1\n", b: "0\n"} {
		host.In(ns, func() error {
			if got, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(got) != want {
				t.Errorf("ip_forward in %s is %q, %v; want %q", ns, got, err, want)
			}
			return nil
		})
	}
	for _, key := range []string{"net.ipv4.no_such_thing", "../etc/passwd", ""} {
		if err := host.Sysctl(a, key, "1"); err == nil {
			t.Errorf("sysctl %q was set", key)
		}
	}
}

func TestRootFollowLinks(t *testing.T) {
	name := hosttest.Namespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen := make(chan []host.Link)
	followed := make(chan error, 1)
	go func() {
		followed <- host.In(name, func() error {
			return host.FollowLinks(ctx, func(links []host.Link) error {
				select {
				case seen <- links:
				case <-ctx.Done():
				}
				return nil
			})
		})
	}()
	await := func(what string, holds func([]host.Link) bool) {
		t.Helper()
		for {
			select {
			case links := <-seen:
				if holds(links) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("never saw %s", what)
			}
		}
	}
	await("lo alone", func(l []host.Link) bool { return len(l) == 1 })
	if err := host.CreateBridge(name, "br0"); err != nil {
		t.Fatal(err)
	}
	// Far more changes than the reader takes: they are coalesced, none is missed.
	for i := range 40 {
		v := host.Veth{Name: "v" + string(rune('a'+i/26)) + string(rune('a'+i%26)), Namespace: name, PeerNamespace: name}
		v.Peer = "p" + v.Name
		if err := host.CreateVeth(v); err != nil {
			t.Fatal(err)
		}
		if err := host.SetMaster(name, v.Name, "br0"); err != nil {
			t.Fatal(err)
		}
	}
	await("40 ports", func(links []host.Link) bool {
		ports := 0
		for _, l := range links {
			if l.Master != 0 {
				ports++
			}
		}
		return ports == 40
	})
	if err := host.DeleteLink(name, "br0"); err != nil {
		t.Fatal(err)
	}
	await("no port", func(links []host.Link) bool {
		return !slices.ContainsFunc(links, func(l host.Link) bool { return l.Master != 0 })
	})
	cancel()
	if err := <-followed; !errors.Is(err, context.Canceled) {
		t.Errorf("FollowLinks ended with %v", err)
	}
}

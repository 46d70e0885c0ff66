package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/container/containertest"
	"bocage.dev/bocage/host/hosttest"
)

// yard is a site of hosts with container runtimes: dockerd on h1, where the
// controller is, podman on h2.
type yard struct {
	*site
	hosts    map[string]string // namespaces
	runtimes map[string]*containertest.Runtime
}

const yardController = "10.99.0.1"

func newYard(t *testing.T) *yard {
	t.Helper()
	hosttest.Root(t)
	dir, err := os.MkdirTemp("", "bct-")
	if err != nil {
		t.Fatal(err)
	}
	y := &yard{site: &site{t: t, program: binary(t), dir: dir, nodes: map[string]*exec.Cmd{}}, hosts: map[string]string{}, runtimes: map[string]*containertest.Runtime{}}
	t.Cleanup(func() { y.must(os.RemoveAll(dir)) })
	for _, name := range []string{"h1", "h2"} {
		y.hosts[name] = hosttest.Namespace(t)
	}
	y.must(host.CreateVeth(host.Veth{Name: "bct-wire", Namespace: y.hosts["h1"], Peer: "bct-wire", PeerNamespace: y.hosts["h2"]}))
	y.must(host.AddAddress(y.hosts["h1"], "bct-wire", netip.MustParsePrefix(yardController+"/24")))
	y.must(host.AddAddress(y.hosts["h2"], "bct-wire", netip.MustParsePrefix("10.99.0.2/24")))
	y.runtimes["h1"] = containertest.Start(t, "docker", y.hosts["h1"])
	y.runtimes["h2"] = containertest.Start(t, "podman", y.hosts["h2"])
	y.runtimes["h1"].Must("network", "create", "back")
	y.runtimes["h2"].Must("network", "create", "--disable-dns", "back")
	t.Cleanup(y.down)
	y.start("h1")
	y.await(30*time.Second, "the controller answers", func() error {
		if _, errs, code := y.bocage("", "get", "hosts"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	token := y.ok("", "agent", "token", "h2")
	y.must(os.WriteFile(filepath.Join(dir, "h2.token"), []byte(token), 0o600))
	y.start("h2")
	return y
}

// start starts a host's process, also again.
func (y *yard) start(name string) {
	y.t.Helper()
	y.must(os.MkdirAll(filepath.Join(y.dir, name), 0o755))
	log, err := os.OpenFile(y.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	y.must(err)
	defer log.Close()
	args := []string{"up", "--api-listen", "", "--transport-listen", yardController + ":4222"}
	if name != "h1" {
		args = []string{"agent", "--controllers", yardController + ":4222", "--join", filepath.Join(y.dir, name+".token")}
	}
	args = append(args, "--no-inspection", "--no-deception", "--trust-label", "app", "--runtime-socket", y.runtimes[name].Socket)
	cmd := exec.Command(y.program, append(args, y.places(name)...)...)
	cmd.Stdout, cmd.Stderr = log, log
	y.must(host.Start(y.hosts[name], cmd))
	y.nodes[name] = cmd
}

func (y *yard) log(name string) string { return filepath.Join(y.dir, name+".log") }

func (y *yard) down() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for name, cmd := range y.nodes {
		if y.t.Failed() {
			words, _ := os.ReadFile(y.log(name))
			y.t.Logf("log of %s:\n%s", name, words[max(0, len(words)-6000):])
		}
		off := exec.CommandContext(ctx, y.program, append([]string{"off", "--purge"}, y.places(name)...)...)
		var out bytes.Buffer
		off.Stdout, off.Stderr = &out, &out
		err := host.Start(y.hosts[name], off)
		go func() { _ = cmd.Wait() }()
		if err == nil {
			err = off.Wait()
		}
		if err != nil {
			y.t.Errorf("bocage off on %s: %v\n%s", name, err, out.String())
		}
	}
}

// workload waits for a workload that is as wanted.
func (y *yard) workload(name string, as func(*bocage.Workload) bool) *bocage.Workload {
	y.t.Helper()
	var found *bocage.Workload
	y.await(90*time.Second, "workload "+name+" as wanted", func() error {
		found = nil
		for _, w := range items[bocage.Workload](y.site, "workloads") {
			if w.NamespacedName() == name {
				found = &w
			}
		}
		if found == nil || !as(found) {
			return fmt.Errorf("it is %+v", found)
		}
		return nil
	})
	return found
}

func anyway(*bocage.Workload) bool { return true }

// gone waits until nothing bears a name.
func (y *yard) gone(name string) {
	y.t.Helper()
	y.await(90*time.Second, name+" is forgotten", func() error {
		for _, w := range items[bocage.Workload](y.site, "workloads") {
			if w.NamespacedName() == name {
				return errors.New("it is there")
			}
		}
		return nil
	})
}

func TestRootContainers(t *testing.T) {
	y := newYard(t)
	t.Run("inventory", y.inventory)
	t.Run("first packet", y.firstPacket)
	t.Run("connections live on", y.connectionsLive)
	t.Run("many starts", y.manyStarts)
}

// What runs is in the inventory, under whatever name, on whatever networks, and
// nothing that its owner writes gives it more than its place.
func (y *yard) inventory(t *testing.T) {
	y.t = t
	docker, podman := y.runtimes["h1"], y.runtimes["h2"]
	docker.Run("Web_1", "--label", "app=web", "--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=web",
		"--label", "bocage.dev/zone=pci", "--label", "topology.kubernetes.io/zone=x", "--label", "evil=a b", "--label", "note=\u202egpj")
	names := func() (got []string) {
		for _, w := range items[bocage.Workload](y.site, "workloads") {
			got = append(got, w.NamespacedName())
		}
		return got
	}
	var web *bocage.Workload
	y.await(60*time.Second, "a container of a compose project", func() error {
		for _, w := range items[bocage.Workload](y.site, "workloads") {
			if w.Namespace == "shop" && strings.HasPrefix(w.Name, "web-1-") && strings.HasSuffix(w.Name, ".h1") {
				web = &w
				return nil
			}
		}
		return fmt.Errorf("there are %v", names())
	})
	if web.Spec.Host != "h1" || web.Spec.Interface == "" || web.Spec.MAC == "" || web.Spec.Instance == "" || len(web.Spec.Addresses) != 1 ||
		web.Status.Assurance != "L2" || web.Status.VouchedBy != "h1" || !strings.Contains(web.Status.Image, "probe") || web.Status.Digest == "" {
		t.Errorf("%+v", web)
	}
	for key, want := range map[string]string{"app": "web", "container/app": "web", "container/com.docker.compose.service": "web", "bocage.dev/zone": "",
		"container/topology.kubernetes.io.zone": "x", "topology.kubernetes.io/zone": "", "container/evil": "", "container/note": ""} {
		if web.Labels[key] != want {
			t.Errorf("label %s is %q, want %q", key, web.Labels[key], want)
		}
	}
	if table := y.ok("", "get", "workloads"); !strings.Contains(table, web.Spec.Interface) || !strings.Contains(table, "L2") || !strings.Contains(table, "probe") || !strings.Contains(table, "h1") {
		t.Errorf("the table does not show it:\n%s", table)
	}

	// A second network is a second interface of one workload.
	docker.Must("network", "connect", "back", "Web_1")
	name := web.NamespacedName()
	two := y.workload(name, func(w *bocage.Workload) bool { return len(w.Spec.MoreInterfaces) == 1 })
	if two.Status.Identity != web.Status.Identity || len(two.Spec.Addresses) != 2 || two.Spec.MoreInterfaces[0].Interface == two.Spec.Interface {
		t.Errorf("%+v", two.Spec)
	}
	docker.Must("network", "disconnect", "back", "Web_1")
	y.workload(name, func(w *bocage.Workload) bool { return len(w.Spec.MoreInterfaces) == 0 })

	// A restart is no other workload, nor is one anew under the old name.
	docker.Must("restart", "-t", "0", "Web_1")
	y.workload(name, func(w *bocage.Workload) bool { return w.Status.Identity == web.Status.Identity })
	docker.Must("rm", "-f", "Web_1")
	docker.Run("Web_1", "--label", "com.docker.compose.project=shop")
	again := y.workload(name, func(w *bocage.Workload) bool { return w.Spec.Instance != web.Spec.Instance })
	if again.Status.Identity != web.Status.Identity {
		t.Errorf("a container anew has identity %d, had %d", again.Status.Identity, web.Status.Identity)
	}

	// On the other host, in a pod.
	podman.Must("pod", "create", "--name", "duo", "--network", "back", "--label", "app=duo", "--infra-image", containertest.Image, "--infra-command", "/probe")
	podman.Run("one", "--pod", "duo")
	podman.Run("alone", "--network", "back", "--label", "bocage.dev/namespace=pay")
	pod := y.workload("default/duo.h2", anyway)
	if pod.Spec.Host != "h2" || pod.Labels["app"] != "duo" || !strings.Contains(pod.Status.Image, "probe") {
		t.Errorf("%+v", pod)
	}
	y.workload("pay/alone.h2", anyway)

	// What has no interface of its own here is told, never passed over.
	docker.Run("bare", "--network", "host")
	y.await(30*time.Second, "what is not governed is told", func() error {
		for _, h := range items[bocage.Host](y.site, "hosts") {
			for _, c := range h.Status.Conditions {
				if h.Name == "h1" && c.Type == bocage.ConditionGoverned && c.Status == "False" && strings.Contains(c.Message, "default/bare.h1 uses the host's own interfaces") {
					return nil
				}
			}
		}
		return errors.New("not told")
	})

	// A declaration wins, and the sighting is told to have come to nothing.
	declared := fmt.Sprintf("apiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: declared, namespace: shop}\nspec: {host: h1, interface: %s, addresses: [%s]}\n",
		again.Spec.Interface, again.Spec.Addresses[0])
	y.ok(declared, "apply", "-f", "-")
	y.gone(name)
	y.await(90*time.Second, "the conflict is told", func() error {
		for _, h := range items[bocage.Host](y.site, "hosts") {
			for _, c := range h.Status.Conditions {
				if h.Name == "h1" && c.Type == bocage.ConditionDiscovered && c.Status == "False" && strings.Contains(c.Message, "shop/declared") {
					return nil
				}
			}
		}
		return errors.New("not told")
	})
	y.ok("", "delete", "workload", "declared", "-n", "shop")
	y.workload(name, anyway)

	docker.Must("rm", "-f", "Web_1", "bare")
	podman.Must("pod", "rm", "-f", "duo")
	podman.Must("rm", "-f", "alone")
	for _, name := range []string{name, "default/duo.h2", "pay/alone.h2"} {
		y.gone(name)
	}
}

// sink counts datagrams that reach the host itself.
type sink struct {
	conn    net.PacketConn
	count   atomic.Int64
	address string
}

func (y *yard) listen(name, address string) *sink {
	y.t.Helper()
	s := &sink{}
	y.must(host.In(y.hosts[name], func() (err error) {
		s.conn, err = net.ListenPacket("udp", address+":0")
		return err
	}))
	s.address = s.conn.LocalAddr().String()
	go func() {
		for buffer := make([]byte, 2048); ; {
			if _, _, err := s.conn.ReadFrom(buffer); err != nil {
				return
			}
			s.count.Add(1)
		}
	}()
	y.t.Cleanup(func() { s.conn.Close() })
	return s
}

const enforceEverything = "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: everything}\nspec: {mode: enforce}\n"

// enforced waits until every host has what is declared in force.
func (y *yard) enforced(change func()) {
	y.t.Helper()
	before := y.generation()
	change()
	y.await(60*time.Second, "every host has the change in force", func() error {
		now := y.generation()
		if now == before {
			return errors.New("nothing was compiled yet")
		}
		for _, h := range items[bocage.Host](y.site, "hosts") {
			if h.Status.Generation < now {
				return fmt.Errorf("%s has %d of %d", h.Name, h.Status.Generation, now)
			}
		}
		return nil
	})
}

func (y *yard) generation() (newest uint64) {
	for _, g := range items[bocage.Generation](y.site, "generations") {
		if g.Status.Active {
			newest = max(newest, g.Status.Number)
		}
	}
	return newest
}

// Where policy is enforced, not one packet of a container whose first instruction
// is to send gets out, from its first one on; where it is observed, every one does.
func (y *yard) firstPacket(t *testing.T) {
	y.t = t
	for _, name := range []string{"h1", "h2"} {
		gateway := "172.30.0.1"
		args := []string{}
		if name == "h2" {
			args = []string{"--network", "back"}
			y.runtimes[name].Run("ground", args...) // podman makes a bridge with its first container
			gateway = y.gatewayOf(name)
		}
		at := y.listen(name, gateway)
		run := func(label string) { y.runtimes[name].Run(label, append(args, "--", "shout", at.address)...) }
		run("observed-" + name)
		y.await(30*time.Second, "an observed container is heard", func() error {
			if at.count.Load() == 0 {
				return errors.New("nothing was heard")
			}
			return nil
		})
		y.runtimes[name].Must("rm", "-f", "observed-"+name)
	}
	y.enforced(func() { y.ok(enforceEverything, "apply", "-f", "-") })
	for _, name := range []string{"h1", "h2"} {
		gateway, args := "172.30.0.1", []string{}
		if name == "h2" {
			gateway, args = y.gatewayOf(name), []string{"--network", "back"}
		}
		at := y.listen(name, gateway)
		var group sync.WaitGroup
		for part := range 3 { // some at a time, so that the agent has more to do than one
			group.Go(func() {
				for i := part; i < 12; i += 3 {
					if _, err := y.runtimes[name].TryRun(fmt.Sprint("eager-", i), append(slices.Clone(args), "--", "shout", at.address)...); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		for i := range 12 {
			y.workload(fmt.Sprintf("default/eager-%d.%s", i, name), anyway)
		}
		if n := at.count.Load(); n != 0 {
			t.Errorf("%s: %d packets of containers that nobody had vouched for got through", name, n)
		}
		for i := range 12 {
			y.runtimes[name].Must("rm", "-f", fmt.Sprint("eager-", i))
		}
	}
	refused := y.ok("", "observe", "--verdict", "drop", "--since", "10m", "-o", "jsonl")
	if !strings.Contains(refused, bocage.ReasonIdentityUnknown.String()) {
		t.Error("no refusal for want of an identity is told")
	}
	y.enforced(func() { y.ok("", "delete", "scope", "everything") })
	y.runtimes["h2"].Must("rm", "-f", "ground")
}

// gatewayOf is the address of the bridge that podman made.
func (y *yard) gatewayOf(name string) string {
	y.t.Helper()
	var gateway string
	y.must(host.In(y.hosts[name], func() error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			if !strings.HasPrefix(i.Name, "podman") {
				continue
			}
			addresses, err := i.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addresses {
				if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
					gateway = p.Addr().String()
				}
			}
		}
		return nil
	}))
	if gateway == "" {
		y.t.Fatal("podman made no bridge")
	}
	return gateway
}

const talkers = `apiVersion: bocage.dev/v1
kind: Application
metadata: {name: server, namespace: default}
spec:
  workload: {matchLabels: {app: server}}
  provides: [{name: talk, port: 7000, to: {matchLabels: {app: talker}}}]
---
apiVersion: bocage.dev/v1
kind: Application
metadata: {name: talker, namespace: default}
spec:
  workload: {matchLabels: {app: talker}}
  consumes: [{service: server}]
`

// A connection that policy allows comes about although it was begun before anybody
// knew who its ends were, and lives on whatever dies.
func (y *yard) connectionsLive(t *testing.T) {
	y.t = t
	y.enforced(func() { y.ok(enforceEverything+"---\n"+talkers, "apply", "-f", "-") })
	docker := y.runtimes["h1"]
	docker.Run("server", "--label", "app=server", "--", "serve", "7000")
	server := y.workload("default/server.h1", anyway)
	docker.Run("talker", "--label", "app=talker", "--", "talk", server.Spec.Addresses[0].String()+":7000")
	y.await(30*time.Second, "the talker is connected", func() error {
		if words, err := docker.Do("logs", "talker"); err != nil || !strings.Contains(words, "connected") {
			return fmt.Errorf("it says %q, %v", words, err)
		}
		return nil
	})
	pid := docker.Must("inspect", "-f", "{{.State.Pid}}", "talker")
	talks := func(when string) {
		t.Helper()
		pace := time.NewTicker(time.Second)
		defer pace.Stop()
		<-pace.C
		if _, err := os.Stat("/proc/" + pid); err != nil {
			t.Fatalf("%s: the connection broke: %v", when, err)
		}
	}
	talks("at first")
	y.kill9("h1")
	talks("without an agent and a controller")
	docker.Kill()
	y.start("h1")
	y.await(60*time.Second, "the controller answers", func() error {
		if _, errs, code := y.bocage("", "get", "hosts"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	talks("with a new agent, and no dockerd")
	y.await(30*time.Second, "the dead runtime is told", func() error {
		for _, h := range items[bocage.Host](y.site, "hosts") {
			for _, c := range h.Status.Conditions {
				if h.Name == "h1" && c.Type == bocage.ConditionDiscovered && c.Reason == "RuntimeUnreachable" {
					return nil
				}
			}
		}
		return errors.New("not told")
	})
	if w := y.workload("default/server.h1", anyway); w.Status.Identity != server.Status.Identity {
		t.Error("the inventory flapped while dockerd was dead")
	}
	docker.Serve()
	talks("with a new dockerd")
	if w := y.workload("default/server.h1", anyway); w.Status.Identity != server.Status.Identity || w.UID != server.UID {
		t.Error("the inventory flapped when dockerd came back")
	}
	// The host is still without a hole: a stranger reaches nobody.
	docker.Run("stranger", "--", "shout", server.Spec.Addresses[0].String()+":7000")
	y.workload("default/stranger.h1", anyway)
	for range 6 { // longer than the talker waits for an answer
		talks("beside a stranger")
	}
	docker.Must("rm", "-f", "stranger", "talker", "server")
	y.enforced(func() { y.ok(enforceEverything+"---\n"+talkers, "delete", "-f", "-") })
}

// starts is how many containers are started under load, some at a time.
const (
	starts  = 100
	atATime = 4
)

// Containers that come and go are all known while they are there, none is left
// when they are gone; how long that takes is measured.
func (y *yard) manyStarts(t *testing.T) {
	y.t = t
	docker := y.runtimes["h1"]
	docker.Run("first")
	y.workload("default/first.h1", anyway)
	docker.Must("rm", "-f", "first")
	since := time.Now()
	attached := y.logged("h1", since)
	newlinks := y.followLinks("h1")
	begun := make(map[string]time.Time)
	var mu sync.Mutex
	var group sync.WaitGroup
	turns := make(chan int)
	for range atATime {
		group.Go(func() {
			for i := range turns {
				name := fmt.Sprint("load-", i)
				if _, err := docker.TryRun(name); err != nil {
					t.Error(err)
					continue
				}
				at, err := time.Parse(time.RFC3339Nano, docker.Must("inspect", "-f", "{{.State.StartedAt}}", name))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				begun["default/"+name+".h1"] = at
				mu.Unlock()
				y.awaitIdentity(t, "default/"+name+".h1", attached)
				if _, err := docker.Do("rm", "-f", name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range starts {
		turns <- i
	}
	close(turns)
	group.Wait()
	var toAttach, toIdentity []time.Duration
	told := newlinks()
	for _, line := range attached() {
		if at, ok := told[line.ifindex]; ok {
			toAttach = append(toAttach, line.at.Sub(at))
			delete(told, line.ifindex) // it becomes unknown once more when it ends
		}
		if at, ok := begun[line.workload]; ok && line.identity != 0 {
			toIdentity = append(toIdentity, line.at.Sub(at))
		}
	}
	if len(toIdentity) < starts {
		t.Errorf("%d of %d containers got their identity", len(toIdentity), starts)
	}
	t.Logf("%d starts, %d at a time: from the kernel's notice to the attached program p50 %s, p99 %s; from the container's start to its identity p50 %s, p99 %s",
		starts, atATime, quantile(toAttach, 0.5), quantile(toAttach, 0.99), quantile(toIdentity, 0.5), quantile(toIdentity, 0.99))
	y.await(90*time.Second, "none is left", func() error {
		if n := len(items[bocage.Workload](y.site, "workloads")); n != 0 {
			return fmt.Errorf("%d workloads are left", n)
		}
		return nil
	})
}

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

// attachment is a line of an agent's log.
type attachment struct {
	at       time.Time
	ifindex  uint32
	workload string
	identity uint64
}

// logged reads the attachments that an agent has logged since.
func (y *yard) logged(name string, since time.Time) func() []attachment {
	return func() (all []attachment) {
		words, _ := os.ReadFile(y.log(name))
		for line := range strings.Lines(string(words)) {
			if !strings.Contains(line, "msg=attached ") {
				continue
			}
			var a attachment
			for field := range strings.FieldsSeq(line) {
				key, value, _ := strings.Cut(field, "=")
				switch key {
				case "time":
					a.at, _ = time.Parse(time.RFC3339Nano, value)
				case "ifindex":
					n, _ := strconv.ParseUint(value, 10, 32)
					a.ifindex = uint32(n)
				case "workload":
					a.workload = value
				case "identity":
					a.identity, _ = strconv.ParseUint(value, 10, 32)
				}
			}
			if a.at.After(since) {
				all = append(all, a)
			}
		}
		return all
	}
}

func (y *yard) awaitIdentity(t *testing.T, workload string, attached func() []attachment) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if slices.ContainsFunc(attached(), func(a attachment) bool { return a.workload == workload && a.identity != 0 }) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s got no identity", workload)
			return
		}
	}
}

// followLinks notes when the kernel told of each link that joined a bridge.
func (y *yard) followLinks(name string) func() map[uint32]time.Time {
	y.t.Helper()
	seen := map[uint32]time.Time{}
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = host.In(y.hosts[name], func() error {
			return host.FollowLinks(ctx, func(links []host.Link) error {
				mu.Lock()
				defer mu.Unlock()
				for _, l := range links {
					if _, known := seen[l.Index]; !known && l.Master != 0 {
						seen[l.Index] = time.Now()
					}
				}
				return nil
			})
		})
	}()
	y.t.Cleanup(func() {
		cancel()
		<-done
	})
	return func() map[uint32]time.Time {
		mu.Lock()
		defer mu.Unlock()
		out := make(map[uint32]time.Time, len(seen))
		for k, v := range seen {
			out[k] = v
		}
		return out
	}
}

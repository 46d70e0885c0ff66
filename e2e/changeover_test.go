package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/lab"
	"bocage.dev/bocage/store/etcd"
)

// relay carries connections to a socket, until it is cut: then it is silent, as a
// network is that drops everything.
type relay struct {
	listener net.Listener
	to       string

	mu    sync.Mutex // guards the fields below
	open  chan struct{}
	conns []net.Conn
	all   sync.WaitGroup
}

func newRelay(t testing.TB, path, to string) *relay {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: listener, to: to, open: make(chan struct{})}
	close(r.open)
	r.all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.all.Go(func() { r.carry(conn) })
		}
	})
	t.Cleanup(func() {
		r.heal()
		listener.Close()
		r.mu.Lock()
		for _, conn := range r.conns {
			conn.Close()
		}
		r.mu.Unlock()
		r.all.Wait()
	})
	return r
}

func (r *relay) carry(conn net.Conn) {
	other, err := net.Dial("unix", r.to)
	if err != nil {
		conn.Close()
		return
	}
	r.mu.Lock()
	r.conns = append(r.conns, conn, other)
	r.mu.Unlock()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		_, _ = io.Copy(struct{ io.Writer }{to}, gated{from, r})
	}
	both.Go(func() { pass(other, conn) })
	both.Go(func() { pass(conn, other) })
	both.Wait()
}

// gated holds back what was read while the relay is cut.
type gated struct {
	net.Conn
	r *relay
}

func (g gated) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	g.r.mu.Lock()
	open := g.r.open
	g.r.mu.Unlock()
	<-open
	return n, err
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
}

func (r *relay) heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
	default:
		close(r.open)
	}
}

// pair is a lab with an agent on each host and two controllers, c1 on h1 and c2 on h2,
// that share an etcd.
type pair struct {
	*site
	store  *etcd.Store
	relays map[string]*relay // to the store, by controller
	asked  string            // the controller that people use
}

func newPair(t testing.TB) *pair {
	t.Helper()
	hosttest.Root(t)
	dir, err := os.MkdirTemp("", "bct-")
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{site: &site{t: t, program: binary(t), dir: dir, nodes: map[string]*exec.Cmd{}}, relays: map[string]*relay{}, asked: "c1"}
	t.Cleanup(func() { p.must(os.RemoveAll(dir)) })
	p.must(os.Chmod(dir, 0o755))
	if p.lab, err = lab.New(t.Context(), lab.Config{Prefix: hosttest.Name(t), Program: p.program}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.down)
	p.must(os.Mkdir(filepath.Join(dir, "etcd"), 0o700))
	p.openStore()
	t.Cleanup(func() { p.must(p.store.Close()) })
	for _, c := range []string{"c1", "c2"} {
		p.must(os.MkdirAll(filepath.Join(dir, c, "state", "controller"), 0o700))
		p.relays[c] = newRelay(t, filepath.Join(dir, c, "etcd.sock"), filepath.Join(dir, "etcd", "s"))
	}
	t.Cleanup(p.end)
	p.start("c1")
	p.answers("c1")
	authority := func(c string) string { return filepath.Join(dir, c, "state", "controller", "authority") }
	if out, err := exec.Command("cp", "-a", authority("c1"), authority("c2")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.start("c2")
	p.answers("c2")
	for _, h := range p.lab.Hosts() {
		p.must(os.WriteFile(filepath.Join(dir, h+".token"), []byte(p.ok("", "agent", "token", h)), 0o600))
		p.start(h)
	}
	p.must(p.lab.Start(t.Context()))
	var declared strings.Builder
	p.must(p.lab.WriteWorkloads(&declared))
	before, after, _ := strings.Cut(shop, "apiVersion: bocage.dev/v1\nkind: Guardrail\n")
	_, after, _ = strings.Cut(after, "---\n") // nothing is inspected here
	p.ok(declared.String()+"---\n"+before+after, "apply", "-f", "-")
	p.inForce()
	return p
}

func (p *pair) openStore() {
	p.t.Helper()
	var err error
	p.store, err = etcd.Open(etcd.Config{Dir: filepath.Join(p.dir, "etcd", "data"), Socket: filepath.Join(p.dir, "etcd", "s")})
	p.must(err)
}

// start starts a controller or a host's agent, also again.
func (p *pair) start(name string) {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	p.must(err)
	defer log.Close()
	transport := func(h string) string { return p.lab.ManagementAddress(h).String() + ":4222" }
	on := "h" + name[1:]
	args := []string{"controller", "--api-listen", "", "--transport-listen", transport(on), "--etcd", "unix://" + filepath.Join(p.dir, name, "etcd.sock")}
	if name == on {
		args = []string{"agent", "--no-inspection", "--no-deception", "--controllers", transport("h1") + "," + transport("h2"), "--join", filepath.Join(p.dir, name+".token")}
	}
	cmd := exec.Command(p.program, append(args, p.places(name)...)...)
	cmd.Stdout, cmd.Stderr = log, log
	p.must(host.Start(p.lab.HostNamespace(on), cmd))
	p.nodes[name] = cmd
}

// ends waits until a process has ended by itself, and returns how.
func (p *pair) ends(name string) error {
	p.t.Helper()
	cmd, ended := p.nodes[name], make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Minute):
	}
	_ = cmd.Process.Kill()
	<-ended
	delete(p.nodes, name)
	p.t.Fatalf("%s should have ended, and went on for a minute", name)
	return nil
}

// end ends the controllers, before the hosts are taken down.
func (p *pair) end() {
	for _, c := range []string{"c1", "c2"} {
		if cmd := p.nodes[c]; cmd != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			delete(p.nodes, c)
		}
		if p.t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.dir, c+".log"))
			p.t.Logf("log of %s:\n%s", c, log[max(0, len(log)-8000):])
		}
	}
}

// ask runs a command against one of the controllers.
func (p *pair) ask(c, stdin string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.program, append([]string{"--run-dir", filepath.Join(p.dir, c, "run")}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (p *pair) ok(stdin string, args ...string) string {
	p.t.Helper()
	out, errs, code := p.ask(p.asked, stdin, args...)
	if code != 0 {
		p.t.Fatalf("bocage %s, asked of %s: exit code %d\n%s%s", strings.Join(args, " "), p.asked, code, out, errs)
	}
	return out
}

func (p *pair) answers(c string) {
	p.t.Helper()
	p.await(time.Minute, c+" answers", func() error {
		if _, errs, code := p.ask(c, "", "get", "hosts"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
}

// inForce waits until both hosts enforce the active generation, and returns it.
func (p *pair) inForce() (active uint64) {
	p.t.Helper()
	p.await(time.Minute, "the active generation is in force", func() error {
		var generations struct{ Items []bocage.Generation }
		p.must(json.Unmarshal([]byte(p.ok("", "get", "generations", "-o", "json")), &generations))
		for _, g := range generations.Items {
			if g.Status.Active {
				active = g.Status.Number
			}
		}
		var hosts struct{ Items []bocage.Host }
		p.must(json.Unmarshal([]byte(p.ok("", "get", "hosts", "-o", "json")), &hosts))
		for _, h := range hosts.Items {
			if h.Status.Generation != active {
				return fmt.Errorf("%s has generation %d of %d", h.Name, h.Status.Generation, active)
			}
		}
		if len(hosts.Items) != 2 || active == 0 {
			return fmt.Errorf("%d hosts, generation %d", len(hosts.Items), active)
		}
		return nil
	})
	return active
}

// cacheAnswers waits until the api's way to the cache is open, or is not.
func (p *pair) cacheAnswers(want bool) time.Duration {
	p.t.Helper()
	return p.await(time.Minute, fmt.Sprintf("the cache answers: %v", want), func() error {
		is, err := p.lab.Connects(p.t.Context(), "shop/api", "shop/cache", 6379, 200*time.Millisecond)
		if err == nil && is != want {
			err = fmt.Errorf("it answers: %v", is)
		}
		return err
	})
}

// TestRootChangeover takes from agents the controller that they talk to, and from
// controllers their store: whatever is declared meanwhile reaches every host, and a
// connection that is open stays open.
func TestRootChangeover(t *testing.T) {
	p := newPair(t)
	held, err := p.lab.Hold(t.Context(), "shop/web", "shop/api", 8080)
	p.must(err)
	defer held.Close()
	quarantined := func(what string) {
		t.Helper()
		p.ok("", "quarantine", "add", "shop/cache", "--wait", "0s", "--for", "30m", "--reason", "test")
		took := p.cacheAnswers(false)
		p.inForce()
		t.Logf("%s: a quarantine is in the dataplane %.1f s after it was declared", what, took.Seconds())
		if !held.Alive(t.Context(), 10*time.Second) {
			t.Errorf("%s: a connection that was open is not any more", what)
		}
		p.ok("", "quarantine", "release", "shop/cache")
		p.cacheAnswers(true)
	}

	p.kill9("c1")
	p.asked = "c2" // and so are both agents, from now on
	quarantined("killed")
	p.start("c1")
	p.answers("c1")

	p.relays["c2"].cut()
	p.asked = "c1"
	quarantined("cut off from etcd")
	p.relays["c2"].heal()
	p.answers("c2")

	// An older store in the place of this one.
	data, backup := filepath.Join(p.dir, "etcd", "data"), filepath.Join(p.dir, "etcd", "backup")
	p.must(p.store.Close())
	if out, err := exec.Command("cp", "-a", data, backup).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.openStore()
	p.answers("c1")
	p.ok("", "quarantine", "add", "shop/cache", "--wait", "0s", "--for", "30m", "--reason", "lost")
	p.cacheAnswers(false)
	lost := p.inForce()
	p.must(p.store.Close())
	p.must(os.RemoveAll(data))
	p.must(os.Rename(backup, data))
	p.openStore()
	for _, c := range []string{"c1", "c2"} {
		if err := p.ends(c); err == nil {
			t.Errorf("%s ended as if all was well", c)
		}
		if log, err := os.ReadFile(filepath.Join(p.dir, c+".log")); err != nil || !strings.Contains(string(log), "restored from a backup") {
			t.Errorf("%s does not say why it ended (%v)", c, err)
		}
		p.start(c)
		p.answers(c)
	}
	p.cacheAnswers(true)
	if now := p.inForce(); now <= lost {
		t.Errorf("generation %d is in force, and %d was", now, lost)
	}
	quarantined("restored")
}

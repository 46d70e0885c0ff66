package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/inspection/profiles"
	"bocage.dev/bocage/lab"
	"bocage.dev/bocage/manifest"
)

// site is a lab with bocage on both hosts, as operators run it.
type site struct {
	t       testing.TB
	program string
	dir     string
	lab     *lab.Lab
	nodes   map[string]*exec.Cmd
	// byUnit has the second host's agent run as its systemd unit says.
	byUnit bool
}

// newSite stands up a lab, joins both hosts and declares the workloads.
func newSite(t testing.TB, options ...func(*site)) *site {
	t.Helper()
	hosttest.Root(t)
	snapshot, err := lab.TakeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bct-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, program: binary(t), dir: dir, nodes: map[string]*exec.Cmd{}}
	t.Cleanup(func() { s.must(os.RemoveAll(dir)) })
	for _, option := range options {
		option(s)
	}
	name := hosttest.Name(t)
	t.Cleanup(func() {
		residue, err := snapshot.Residue(name)
		s.must(err)
		for _, left := range residue {
			t.Errorf("left behind: %s", left)
		}
	})
	if s.lab, err = lab.New(t.Context(), lab.Config{Prefix: name, Program: s.program}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.down)
	s.start("h1")
	s.await(20*time.Second, "the controller answers", func() error {
		_, _, code := s.bocage("", "get", "hosts")
		if code != 0 {
			return errors.New("not yet")
		}
		return nil
	})
	token, _, _ := s.bocage("", "agent", "token", "h2")
	s.must(os.WriteFile(filepath.Join(dir, "h2.token"), []byte(token), 0o600))
	s.start("h2")
	s.must(s.lab.Start(t.Context()))
	var workloads strings.Builder
	s.must(s.lab.WriteWorkloads(&workloads))
	s.ok(workloads.String(), "apply", "-f", "-")
	s.inForce()
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) start(name string) {
	s.t.Helper()
	s.must(os.MkdirAll(filepath.Join(s.dir, name), 0o755))
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(err)
	defer log.Close()
	transport := s.lab.ManagementAddress("h1").String() + ":4222"
	args := []string{"up", "--api-listen", "", "--transport-listen", transport}
	if name != "h1" {
		args = []string{"agent", "--controllers", transport, "--join", filepath.Join(s.dir, name+".token")}
	}
	args = append(args, s.places(name)...)
	cmd := exec.Command(s.program, args...)
	if s.byUnit && name != "h1" {
		cmd = s.unit(name, args[1:])
	}
	cmd.Stdout, cmd.Stderr = log, log
	s.must(host.Start(s.lab.HostNamespace(name), cmd))
	s.nodes[name] = cmd
}

func (s *site) places(name string) []string {
	return []string{"--host", name, "--run-dir", filepath.Join(s.dir, name, "run"), "--state-dir", filepath.Join(s.dir, name, "state")}
}

// kill9 ends a host's process the hard way.
func (s *site) kill9(name string) {
	s.t.Helper()
	s.must(s.nodes[name].Process.Signal(syscall.SIGKILL))
	_ = s.nodes[name].Wait()
}

func (s *site) down() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.t.Failed() {
		for name := range s.nodes {
			log, _ := os.ReadFile(filepath.Join(s.dir, name+".log"))
			s.t.Logf("log of %s:\n%s", name, log[max(0, len(log)-8000):])
		}
	}
	for name, cmd := range s.nodes {
		off := exec.CommandContext(ctx, s.program, append([]string{"off", "--purge"}, s.places(name)...)...)
		var out bytes.Buffer
		off.Stdout, off.Stderr = &out, &out
		err := host.Start(s.lab.HostNamespace(name), off)
		go func() { _ = cmd.Wait() }()
		if err == nil {
			err = off.Wait()
		}
		if err != nil {
			s.t.Errorf("bocage off on %s: %v\n%s", name, err, out.String())
		}
	}
	if err := s.lab.Down(ctx); err != nil {
		s.t.Error(err)
	}
}

// bocage runs a command against the controller.
func (s *site) bocage(stdin string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append([]string{"--run-dir", filepath.Join(s.dir, "h1", "run")}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that has to succeed.
func (s *site) ok(stdin string, args ...string) string {
	s.t.Helper()
	out, errs, code := s.bocage(stdin, args...)
	if code != 0 {
		s.t.Fatalf("bocage %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func items[T any](s *site, kind string) []T {
	s.t.Helper()
	var list struct{ Items []T }
	s.must(json.Unmarshal([]byte(s.ok("", "get", kind, "-o", "json")), &list))
	return list.Items
}

// await tries until it holds.
func (s *site) await(limit time.Duration, what string, try func() error) time.Duration {
	s.t.Helper()
	begun := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return time.Since(begun)
		}
		if time.Since(begun) > limit {
			s.t.Fatalf("within %s: %s: %v", limit, what, err)
		}
		<-tick.C
	}
}

// inForce waits until both hosts enforce the active generation.
func (s *site) inForce() {
	s.t.Helper()
	s.await(30*time.Second, "the active generation is in force", func() error {
		if _, errs, code := s.bocage("", "get", "hosts"); code != 0 {
			return errors.New(errs)
		}
		var active uint64
		for _, g := range items[bocage.Generation](s, "generations") {
			if g.Status.Active {
				active = g.Status.Number
			}
		}
		hosts := items[bocage.Host](s, "hosts")
		for _, h := range hosts {
			if h.Status.Generation != active {
				return fmt.Errorf("%s has generation %d of %d", h.Name, h.Status.Generation, active)
			}
		}
		if len(hosts) != 2 || active == 0 {
			return fmt.Errorf("%d hosts, generation %d", len(hosts), active)
		}
		return nil
	})
}

// shop is the lab's policy, with the path from web to api inspected.
const shop = `apiVersion: bocage.dev/v1
kind: Application
metadata: {name: web, namespace: shop}
spec:
  workload: {matchLabels: {app: web}}
  provides: [{name: http, port: 80, to: {matchLabels: {app: client}}, toNamespaces: [users]}]
  consumes: [{service: api}]
---
apiVersion: bocage.dev/v1
kind: Application
metadata: {name: api, namespace: shop}
spec:
  workload: {matchLabels: {app: api}}
  provides: [{name: http, port: 8080, to: {matchLabels: {app: web}}}]
  consumes: [{service: db}, {service: cache}]
---
apiVersion: bocage.dev/v1
kind: Application
metadata: {name: db, namespace: shop}
spec:
  workload: {matchLabels: {app: db}}
  provides: [{name: sql, port: 5432, to: {matchLabels: {app: api}}}]
---
apiVersion: bocage.dev/v1
kind: Application
metadata: {name: cache, namespace: shop}
spec:
  workload: {matchLabels: {app: cache}}
  provides: [{name: redis, port: 6379, to: {matchLabels: {app: api}}}]
---
apiVersion: bocage.dev/v1
kind: Application
metadata: {name: client, namespace: users}
spec:
  workload: {matchLabels: {app: client}}
  consumes: [{service: shop/web}]
---
apiVersion: bocage.dev/v1
kind: Guardrail
metadata: {name: inspect-api}
spec:
  match:
    from: {namespaces: [shop], workload: {matchLabels: {app: web}}}
    to: {namespaces: [shop], workload: {matchLabels: {app: api}}}
  require: {inspect: web-attacks}
---
apiVersion: bocage.dev/v1
kind: Scope
metadata: {name: shop}
spec: {namespaces: [shop], mode: enforce}
`

// enforce declares the shop's policy, with a fail mode for inspection.
func (s *site) enforce(failMode string) {
	s.t.Helper()
	var profile strings.Builder
	s.must(manifest.Write(&profile, &bocage.InspectionProfile{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "InspectionProfile"},
		ObjectMeta: bocage.ObjectMeta{Name: "web-attacks"},
		Spec:       bocage.InspectionProfileSpec{Signatures: profiles.Starter()["web-attacks"], FailMode: failMode},
	}))
	s.ok(profile.String()+"---\n"+shop, "apply", "-f", "-")
	s.inForce()
}

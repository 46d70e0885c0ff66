package e2e

import (
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
)

// TestRootFaults shows the declared outcome of each failure (SECURITY.md, "Fail
// modes"), on one site.
func TestRootFaults(t *testing.T) {
	s := newSite(t)
	s.enforce("closed")
	t.Run("dead inspection engine, closed", s.deadEngineClosed)
	t.Run("dead inspection engine, open", s.deadEngineOpen)
	t.Run("longer frames", s.longerFrames)
	t.Run("bad signatures", s.badSignatures)
	t.Run("dead controller", s.deadController)
	t.Run("full disk", s.fullDisk)
}

// longerFrames: where an enforcement point's frames become longer than the engine's links
// take, inspection begins anew with longer ones.
func (s *site) longerFrames(t *testing.T) {
	on := s.lab.HostNamespace("h2")
	out, err := exec.Command("ip", "-n", on, "link", "set", "veth-api", "mtu", "12000").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.await(30*time.Second, "the engine's links take longer frames", func() error {
		links, err := host.Links(on)
		if err != nil {
			return err
		}
		wide := 0
		for _, l := range links {
			if strings.HasPrefix(l.Name, "boc") && l.MTU >= 12000 {
				wide++
			}
		}
		if wide != 2 {
			return fmt.Errorf("%d links do", wide)
		}
		return s.get(t.Context(), time.Second)
	})
}

// engine finds the inspection engine of a host.
func (s *site) engine(name string) int {
	s.t.Helper()
	namespaces, err := host.Namespaces()
	s.must(err)
	for _, ns := range namespaces {
		if !strings.HasPrefix(ns, "bocage-"+name+"-") || !strings.HasSuffix(ns, "-inspect") {
			continue
		}
		pids, err := host.Pids(ns)
		s.must(err)
		for _, pid := range pids {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(cmdline), filepath.Join(s.dir, name)) {
				return pid
			}
		}
	}
	s.t.Fatalf("host %s has no inspection engine", name)
	return 0
}

// get is one request over the inspected path, on a connection of its own.
func (s *site) get(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	response, err := s.lab.Get(ctx, "shop/web", "shop/api", 8080, "/ping", nil)
	if err == nil && response.Status != 200 {
		err = fmt.Errorf("status %d", response.Status)
	}
	return err
}

func (s *site) flows(args ...string) []bocage.FlowRecord {
	s.t.Helper()
	var records []bocage.FlowRecord
	decoder := json.NewDecoder(strings.NewReader(s.ok("", append([]string{"observe", "-o", "jsonl"}, args...)...)))
	for decoder.More() {
		var record bocage.FlowRecord
		s.must(decoder.Decode(&record))
		records = append(records, record)
	}
	return records
}

func (s *site) deadEngineClosed(t *testing.T) {
	if err := s.get(t.Context(), 3*time.Second); err != nil {
		t.Fatalf("with the engine: %v", err)
	}
	// Held still rather than killed, so that it cannot be restarted at once.
	engine := s.engine("h2")
	s.must(syscall.Kill(engine, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(engine, syscall.SIGCONT) })
	s.await(10*time.Second, "flows that owe inspection are refused", func() error {
		for _, r := range s.flows("--from", "shop/web", "--to", "shop/api") {
			if r.Reason == bocage.ReasonInspectionDown && r.Verdict == bocage.VerdictDrop {
				return nil
			}
		}
		if err := s.get(t.Context(), time.Second); err == nil {
			return errors.New("a request passed without inspection")
		}
		return errors.New("no refusal is reported")
	})
	if err := s.lab.Query(t.Context(), "shop/api"); err != nil {
		t.Errorf("a path without the duty suffers: %v", err)
	}
	_ = syscall.Kill(engine, syscall.SIGKILL)
	took := s.await(30*time.Second, "inspection is back", func() error { return s.get(t.Context(), time.Second) })
	t.Logf("requests pass again %.1f s after the engine was killed", took.Seconds())
}

func (s *site) deadEngineOpen(t *testing.T) {
	s.enforce("open")
	s.await(10*time.Second, "requests pass", func() error { return s.get(t.Context(), time.Second) })
	engine := s.engine("h2")
	s.must(syscall.Kill(engine, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(engine, syscall.SIGCONT) })
	s.await(10*time.Second, "flows pass uninspected and are reported", func() error {
		if err := s.get(t.Context(), time.Second); err != nil {
			return err
		}
		for _, r := range s.flows("--from", "shop/web", "--to", "shop/api") {
			if r.Reason == bocage.ReasonInspectionDown && r.Verdict == bocage.VerdictAllow {
				return nil
			}
		}
		return errors.New("no uninspected flow is reported")
	})
	_ = syscall.Kill(engine, syscall.SIGKILL)
	s.await(30*time.Second, "every host is ready", func() error {
		for _, h := range items[bocage.Host](s, "hosts") {
			for _, c := range h.Status.Conditions {
				if c.Type == bocage.ConditionReady && c.Status != "True" {
					return errors.New(c.Message)
				}
			}
		}
		return nil
	})
	s.enforce("closed")
}

// badSignatures: what the engine does not take is told where people look, and
// what it had goes on working.
func (s *site) badSignatures(t *testing.T) {
	s.ok(`apiVersion: bocage.dev/v1
kind: InspectionProfile
metadata: {name: web-attacks}
spec: {signatures: 'drop http any any -> any any (msg:"x"; contnt:"x"; sid:1;)'}
`, "apply", "-f", "-")
	s.await(15*time.Second, "the profile says that it is refused", func() error {
		for _, p := range items[bocage.InspectionProfile](s, "inspectionprofiles") {
			for _, c := range p.Status.Conditions {
				if c.Type == bocage.ConditionEnforced && c.Status == "False" && strings.Contains(c.Message, "contnt") {
					return nil
				}
			}
		}
		return errors.New("not yet")
	})
	if err := s.get(t.Context(), 3*time.Second); err != nil {
		t.Errorf("a harmless request: %v", err)
	}
	s.enforce("closed")
	s.await(15*time.Second, "a good profile is taken", func() error { return s.get(t.Context(), time.Second) })
}

// deadController: enforcement and expiry go on; what is refused stays refused.
func (s *site) deadController(t *testing.T) {
	s.ok("", "quarantine", "add", "shop/cache", "--wait", "0s", "--for", "6s", "--reason", "test")
	s.inForce()
	if open, err := s.lab.Connects(t.Context(), "shop/api", "shop/cache", 6379, 500*time.Millisecond); err != nil || open {
		t.Fatalf("a quarantined workload answers: %v, %v", open, err)
	}
	s.kill9("h1")
	if open, err := s.lab.Connects(t.Context(), "users/client", "shop/db", 5432, 500*time.Millisecond); err != nil || open {
		t.Errorf("without a controller a refused connection opens: %v, %v", open, err)
	}
	if open, err := s.lab.Connects(t.Context(), "shop/api", "shop/db", 5432, 500*time.Millisecond); err != nil || !open {
		t.Errorf("without a controller an allowed connection fails: %v", err)
	}
	s.await(10*time.Second, "the quarantine ends without a controller", func() error {
		open, err := s.lab.Connects(t.Context(), "shop/api", "shop/cache", 6379, 300*time.Millisecond)
		if err == nil && !open {
			err = errors.New("still refused")
		}
		return err
	})
	s.start("h1")
	s.await(30*time.Second, "the controller is back", func() error {
		_, errs, code := s.bocage("", "get", "hosts")
		if code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	s.inForce()
}

// fullDisk fills the disk under the controller's state: reads and enforcement go
// on, nothing acknowledged is lost, and with room all is as before.
func (s *site) fullDisk(t *testing.T) {
	small := filepath.Join(s.dir, "h1", "state", "controller", "events")
	s.kill9("h1")
	disk := filepath.Join(s.dir, "small")
	s.must(os.Mkdir(disk, 0o700))
	s.must(syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512m"))
	t.Cleanup(func() { _ = syscall.Unmount(small, 0); _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	if out, err := exec.Command("cp", "-a", small+"/.", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.must(syscall.Mount(disk, small, "", syscall.MS_BIND, ""))
	s.start("h1")
	s.await(30*time.Second, "the controller is back", func() error {
		_, errs, code := s.bocage("", "get", "hosts")
		if code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	s.inForce()
	filler := filepath.Join(disk, "filler")
	if out, err := exec.Command("sh", "-c", "head -c 400M /dev/zero > "+filler).CombinedOutput(); err != nil {
		t.Logf("fill: %v: %s", err, out)
	}
	// A flow while the disk is full: refused as before, and told of later.
	begun := time.Now()
	if open, err := s.lab.Connects(t.Context(), "users/client", "shop/db", 5433, 500*time.Millisecond); err != nil || open {
		t.Errorf("with a full disk a refused connection opens: %v, %v", open, err)
	}
	s.ok("", "get", "applications")
	s.must(os.Remove(filler))
	took := s.await(40*time.Second, "the refusal of the time without room is told", func() error {
		for _, r := range s.flows("--from", "users/client", "--to", "shop/db", "--port", "5433") {
			if r.Time.After(begun) {
				return nil
			}
		}
		return errors.New("not told yet")
	})
	t.Logf("told %.1f s after there was room again", took.Seconds())
	s.ok("", "quarantine", "add", "shop/cache", "--wait", "0s", "--for", "1s")
	// The tmpfs goes before the site is taken down.
	s.kill9("h1")
	s.must(syscall.Unmount(small, 0))
	s.start("h1")
	s.inForce()
}

package discover

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/container"
	"bocage.dev/bocage/host/hosttest"
)

// A sandbox is found by its file, and where that may not be seen by its process.
func TestRootLook(t *testing.T) {
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	if err := host.CreateVeth(host.Veth{Name: "vhere", Namespace: here, Peer: "vthere", PeerNamespace: there}); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "60")
	if err := host.Start(there, process); err != nil {
		t.Fatal(err)
	}
	defer func() {
		process.Process.Kill()
		process.Wait()
	}()
	d, err := New(Config{Rules: Rules{Host: "h1"}})
	if err != nil {
		t.Fatal(err)
	}
	err = host.In(here, func() error {
		links, err := host.Links("")
		if err != nil {
			return err
		}
		for name, c := range map[string]container.Container{
			"by its file":                   {ID: "a", Sandbox: filepath.Join(host.NamespaceDir, there)},
			"by its process's file":         {ID: "b", Pid: process.Process.Pid},
			"a file that is hidden":         {ID: "c", Sandbox: "/absent", Pid: process.Process.Pid},
			"a file that is something else": {ID: "d", Sandbox: "/dev/null", Pid: process.Process.Pid},
		} {
			used := map[string]box{}
			for range 2 { // the second time it is remembered
				got, err := d.look(&c, links, used)
				if err != nil || got.Number < 0 || len(got.Links) != 2 {
					t.Errorf("%s: %+v, %v", name, got, err)
				}
				d.boxes = used
			}
		}
		if got, err := d.look(&container.Container{ID: "e", Sandbox: "/absent"}, links, map[string]box{}); err == nil {
			t.Errorf("nothing to go by: %+v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What is wrong with a socket is told, with what to do; one that may be absent is not
// missed.
func TestSocketsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	deaf := filepath.Join(dir, "deaf")
	if err := os.WriteFile(deaf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Rules: Rules{Host: "h1"}, Sources: []SourceConfig{
		{Socket: filepath.Join(dir, "optional"), Optional: true}, {Socket: filepath.Join(dir, "absent")}, {Socket: deaf}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	d.SawLinks(nil)
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for seen := d.Sightings(); len(seen.Failing) < 2; seen = d.Sightings() {
		select {
		case <-deadline:
			t.Fatalf("%+v", seen)
		case <-tick.C:
		}
	}
	seen := d.Sightings()
	all := strings.Join(seen.Failing, "\n")
	if len(seen.Failing) != 2 || !strings.Contains(all, "absent does not exist") || !strings.Contains(all, "nobody listens at "+deaf) || len(seen.Known) != 0 || len(seen.Sources) != 3 {
		t.Errorf("%+v", seen)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("ended without a reason")
	}
	if text := d.reason(SourceConfig{Socket: "/s"}, os.ErrPermission); !strings.Contains(text, "may not be read") {
		t.Error(text)
	}
}

// What ends is told as stopped for a while, so that a restart is no other workload.
func TestStoppedForAWhile(t *testing.T) {
	d, err := New(Config{Rules: Rules{Host: "h1"}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	web := bocage.Sighting{Namespace: "shop", Name: "web.h1"}
	tell := func(at time.Time, there ...bocage.Sighting) []bocage.Sighting {
		found := Found{Sightings: there}
		d.remember(found, at)
		d.found = found
		return d.Sightings().Sightings
	}
	tell(now, web)
	if got := tell(now.Add(time.Second)); len(got) != 1 || !got[0].Stopped {
		t.Errorf("just ended: %+v", got)
	}
	if got := tell(now.Add(2*time.Second), web); len(got) != 1 || got[0].Stopped {
		t.Errorf("came back: %+v", got)
	}
	tell(now.Add(3 * time.Second))
	if got := tell(now.Add(4*time.Second + stopGrace)); len(got) != 0 {
		t.Errorf("long ended: %+v", got)
	}
}

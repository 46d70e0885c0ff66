package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/packaging"
)

// unit runs the step before an agent as root, and returns the agent's command line for a
// user who has nothing but the unit's capabilities. The lines are those of the unit that
// is installed, in a folder of the test.
func (s *site) unit(name string, options []string) *exec.Cmd {
	s.t.Helper()
	said := map[string]string{}
	files := packaging.Files()
	i := slices.IndexFunc(files, func(f packaging.File) bool { return filepath.Base(f.Path) == "bocage-agent.service" })
	for line := range strings.Lines(files[i].Text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			said[key] = value
		}
	}
	// What belongs to whoever builds may be out of this user's reach.
	program := filepath.Join(s.dir, "bocage")
	if _, err := os.Stat(program); errors.Is(err, os.ErrNotExist) {
		text, err := os.ReadFile(s.program)
		s.must(err)
		s.must(os.WriteFile(program, text, 0o755))
	}
	s.must(os.Chown(filepath.Join(s.dir, name+".token"), nobody, nobody))
	// The installation's folders, as in packaging/bocage.tmpfiles.
	state := filepath.Join(s.dir, name, "state", "agent")
	s.must(errors.Join(os.MkdirAll(state, 0o711), os.Chown(state, nobody, nobody), os.Chmod(state, 0o700)))
	words := func(line string) []string {
		line = strings.NewReplacer("/usr/bin/bocage", program, "/run/bocage/bpf", filepath.Join(s.dir, name, "bpf"), "--user bocage", "--user nobody").Replace(line)
		fields := strings.Fields(strings.TrimPrefix(line, "+"))
		at := slices.Index(fields, "$BOCAGE_AGENT_OPTIONS")
		return slices.Replace(fields, at, at+1, options...)
	}
	step := words(said["ExecStartPre"])
	prepare := exec.Command(step[0], step[1:]...)
	prepare.Stdout, prepare.Stderr = os.Stderr, os.Stderr
	s.must(host.Start(s.lab.HostNamespace(name), prepare))
	s.must(prepare.Wait())
	caps := "-all"
	for capability := range strings.FieldsSeq(said["CapabilityBoundingSet"]) {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(capability, "CAP_"))
	}
	user := fmt.Sprint(nobody)
	line := append([]string{"--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs",
		"--bounding-set", caps, "--inh-caps", caps, "--ambient-caps", caps}, words(said["ExecStart"])...)
	return exec.Command("setpriv", line...)
}

const nobody = 65534

// An agent with its unit's rights and no others joins, enforces, is killed in use, comes
// back by the unit's two steps, and cuts off whom it is told to.
func TestRootAgentWithItsUnitsRights(t *testing.T) {
	s := newSite(t, func(s *site) { s.byUnit = true })
	s.enforce("open")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.nodes["h2"].Process.Pid))
	s.must(err)
	// CAP_NET_ADMIN is 12 and CAP_BPF 39, capabilities(7).
	for _, want := range []string{"Uid:\t65534\t65534", "CapEff:\t0000008000001000", "CapBnd:\t0000008000001000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the agent's status has no %q:\n%s", want, status)
		}
	}
	passes := func(what string) {
		t.Helper()
		s.await(30*time.Second, what, func() error { return s.lab.Query(t.Context(), "shop/api") })
	}
	passes("what is declared passes")
	for range 2 {
		s.kill9("h2")
		passes("what is declared passes without an agent")
		s.start("h2")
		s.ok("", "quarantine", "add", "shop/db", "--wait", "0s", "--for", "1h")
		s.await(30*time.Second, "the agent cuts a workload off", func() error {
			if s.lab.Query(t.Context(), "shop/api") == nil {
				return errors.New("a query was answered")
			}
			for _, r := range s.flows("--to", "shop/db") {
				if r.Reason == bocage.ReasonQuarantine && r.Verdict == bocage.VerdictDrop {
					return nil
				}
			}
			return errors.New("no refusal is reported")
		})
		s.ok("", "quarantine", "release", "shop/db")
		passes("what is declared passes again")
	}
	s.wire(t)
}

// wire has the agent stand between two machines that have no agent: the Host is
// declared as the documents say, and nothing passes before.
func (s *site) wire(t *testing.T) {
	t.Helper()
	inside, outside := hosttest.Namespace(t), hosttest.Namespace(t)
	for link, far := range map[string]string{"eth1": inside, "eth2": outside} {
		s.must(host.CreateVeth(host.Veth{Name: link, Namespace: s.lab.HostNamespace("h2"), Peer: "eth0", PeerNamespace: far}))
	}
	s.must(host.AddAddress(inside, "eth0", netip.MustParsePrefix("10.40.0.7/24")))
	s.must(host.AddAddress(outside, "eth0", netip.MustParsePrefix("10.40.0.1/24")))
	var listener net.Listener
	s.must(host.In(inside, func() (err error) { listener, err = net.Listen("tcp", "10.40.0.7:502"); return err }))
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	dial := func(within time.Duration) error {
		return host.In(outside, func() error {
			conn, err := net.DialTimeout("tcp", "10.40.0.7:502", within)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	if dial(time.Second) == nil {
		t.Fatal("two links that nobody joined carry a connection")
	}
	const declared = `apiVersion: bocage.dev/v1
kind: Host
metadata: {name: h2}
spec:
  wires: [{name: dmz, inside: eth1, outside: eth2}]
---
apiVersion: bocage.dev/v1
kind: Workload
metadata: {name: scada, namespace: plant, labels: {app: scada}}
spec: {host: h2, interface: dmz, addresses: [10.40.0.7]}
`
	s.ok(declared, "apply", "-f", "-")
	s.await(30*time.Second, "the wire carries", func() error { return dial(time.Second) })
	if h := s.ok("", "get", "hosts", "h2", "-o", "json"); !strings.Contains(h, `"lastSeen"`) {
		t.Errorf("a declaration took the agent's report away:\n%s", h)
	}
	s.ok("apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: plant}\nspec: {namespaces: [plant], mode: enforce}\n", "apply", "-f", "-")
	s.await(30*time.Second, "the wire refuses what nobody declares", func() error {
		if dial(500*time.Millisecond) == nil {
			return errors.New("a connection was opened")
		}
		for _, r := range s.flows("--to", "plant/scada") {
			if r.Verdict == bocage.VerdictDrop {
				return nil
			}
		}
		return errors.New("no refusal is reported")
	})
}

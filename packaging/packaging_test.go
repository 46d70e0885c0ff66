package packaging_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"bocage.dev/bocage/packaging"
)

// lines of a unit by their key, as they come.
func lines(text string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			all[key] = append(all[key], value)
		}
	}
	return all
}

func unit(t *testing.T, name string) string {
	t.Helper()
	for _, f := range packaging.Files() {
		if filepath.Base(f.Path) == name {
			return f.Text
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// The agent has the two capabilities that enforcement needs, the controller none.
func TestUnitsHaveTheirRightsOnly(t *testing.T) {
	for name, want := range map[string]string{"bocage-agent.service": "CAP_BPF CAP_NET_ADMIN", "bocage-controller.service": ""} {
		keys := lines(unit(t, name))
		for _, key := range []string{"CapabilityBoundingSet", "AmbientCapabilities"} {
			if got := fmt.Sprint(keys[key]); got != "["+want+"]" {
				t.Errorf("%s: %s is %s, want %q", name, key, got, want)
			}
		}
		for key, want := range map[string]string{"NoNewPrivileges": "yes", "ProtectSystem": "strict", "RestrictNamespaces": "yes", "SystemCallArchitectures": "native"} {
			if got := fmt.Sprint(keys[key]); got != "["+want+"]" {
				t.Errorf("%s: %s is %s, want %s", name, key, got, want)
			}
		}
		if user := keys["User"]; len(user) != 1 || user[0] == "root" {
			t.Errorf("%s: user %v", name, user)
		}
	}
}

// onDisk writes units into a folder where systemd's tools find them, with a program
// that there is in the place of ours.
func onDisk(t *testing.T, name string, dropIn ...string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "/usr/bin/bocage", "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, name)
	text := unit(t, name)
	for _, d := range dropIn { // as if it stood at the end of [Service]
		before, after, _ := strings.Cut(text, "[Install]")
		_, body, _ := strings.Cut(unit(t, d), "[Service]")
		text = before + body + "\n[Install]" + after
	}
	write(file, text)
	return file
}

// systemd reads every word of the units, alone and with the drop-in.
func TestUnitsAreUnderstood(t *testing.T) {
	tool := analyzer(t)
	for _, file := range []string{onDisk(t, "bocage-agent.service"), onDisk(t, "bocage-agent.service", "functions.conf"), onDisk(t, "bocage-controller.service")} {
		out, err := exec.Command(tool, "verify", "--man=no", file).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", filepath.Base(file), err, out)
		}
	}
	wrong := onDisk(t, "bocage-agent.service")
	text, err := os.ReadFile(wrong)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(wrong, []byte(strings.Replace(string(text), "ProtectHome=", "ProtectHomes=", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "verify", "--man=no", wrong).CombinedOutput(); err == nil && len(out) == 0 {
		t.Error("a word that systemd does not know is not found")
	}
}

// analyzer is systemd's tool, which scripts/setup installs.
func analyzer(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: only the units' own words were tested")
	}
	return tool
}

// What systemd itself says of the units: no exposure beyond what is recorded here.
func TestUnitsAreHardened(t *testing.T) {
	tool := analyzer(t)
	score := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for name, test := range map[string]struct {
		file string
		most float64
	}{
		"the agent":                {onDisk(t, "bocage-agent.service"), 1.8},
		"the agent with functions": {onDisk(t, "bocage-agent.service", "functions.conf"), 6.2}, // it is root
		"the controller":           {onDisk(t, "bocage-controller.service"), 1.3},
	} {
		out, err := exec.Command(tool, "security", "--offline=true", "--no-pager", test.file).CombinedOutput()
		found := score.FindSubmatch(out)
		if err != nil || found == nil {
			t.Errorf("%s: %v: %s", name, err, out)
			continue
		}
		if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got > test.most {
			t.Errorf("%s: exposure %s, want %.1f at most:\n%s", name, found[1], test.most, out)
		}
	}
}

// Each unit's step as root prepares for the user that its agent is, and once only.
func TestStepIsForTheAgentsUser(t *testing.T) {
	agent := lines(unit(t, "bocage-agent.service"))
	functions := lines(unit(t, "functions.conf"))
	for name, keys := range map[string]map[string][]string{"the agent": agent, "the agent with functions": functions} {
		steps := keys["ExecStartPre"]
		if name != "the agent" { // a drop-in adds to the unit's list unless it empties it first
			if len(steps) == 0 || steps[0] != "" {
				t.Errorf("%s: the unit's own step stays: %q", name, steps)
				continue
			}
			steps = steps[1:]
		}
		if len(steps) != 1 || !strings.HasPrefix(steps[0], "+/usr/bin/bocage prepare ") ||
			!strings.Contains(steps[0], " --bpffs /run/bocage/bpf --user "+keys["User"][0]+" $BOCAGE_AGENT_OPTIONS") {
			t.Errorf("%s is user %s: %q", name, keys["User"], steps)
		}
	}
}

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

// The agent has the three capabilities that enforcement needs, the controller none.
func TestUnitsHaveTheirRightsOnly(t *testing.T) {
	for name, want := range map[string]string{"bocage-agent.service": "CAP_BPF CAP_NET_ADMIN CAP_PERFMON", "bocage-controller.service": ""} {
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

// What systemd itself says of the units: no exposure beyond what is recorded here.
func TestUnitsAreHardened(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: only the units' own words were tested")
	}
	score := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for name, most := range map[string]float64{"bocage-agent.service": 1.8, "bocage-controller.service": 1.3} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(unit(t, name)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "security", "--offline=true", "--no-pager", file).CombinedOutput()
		found := score.FindSubmatch(out)
		if err != nil || found == nil {
			t.Errorf("%s: %v: %s", name, err, out)
			continue
		}
		if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got > most {
			t.Errorf("%s: exposure %s, want %.1f at most:\n%s", name, found[1], most, out)
		}
	}
}

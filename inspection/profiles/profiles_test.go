package profiles

import (
	"regexp"
	"strings"
	"testing"
)

// The engine's tests hold the packs to lists of attacks and of ordinary requests
// (inspection/suricata); here only what a reader relies on.
func TestPacksAreInOrder(t *testing.T) {
	number := regexp.MustCompile(`\bsid:(\d+);`)
	technique := regexp.MustCompile(`mitre_technique_id T\d{4}(\.\d{3})?[;,]`)
	severe := regexp.MustCompile(`classtype:(web-application-attack|successful-user);`)
	for name, pack := range Starter() {
		seen := map[string]bool{}
		for i, line := range strings.Split(pack, "\n") {
			if line == "" || line[0] == '#' {
				continue
			}
			id := number.FindStringSubmatch(line)
			switch {
			case id == nil || seen[id[1]]:
				t.Errorf("%s line %d: no number, or one that is taken: %v", name, i+1, id)
				continue
			case !technique.MatchString(line):
				t.Errorf("%s line %d: names no technique of ATT&CK", name, i+1)
			case !strings.Contains(line, "metadata:pack "+name+","):
				t.Errorf("%s line %d: does not name its pack", name, i+1)
			case strings.HasPrefix(line, "drop ") != severe.MatchString(line):
				t.Errorf("%s line %d: what is dropped is an attack, what only alerts is none", name, i+1)
			}
			seen[id[1]] = true
		}
		if len(seen) == 0 {
			t.Errorf("%s holds no signature", name)
		}
	}
}

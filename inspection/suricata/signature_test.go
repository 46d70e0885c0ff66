package suricata

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

func TestNormalize(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "\n"},
		{"alert tcp (sid:1;)", "alert tcp (sid:1;)\n"},
		{"reject tcp (sid:1;)\r\n\r\nrejectboth tcp (sid:2;)\n\n\n", "drop tcp (sid:1;)\n\ndrop tcp (sid:2;)\n"},
		{"  rejectsrc\ttcp x\n# reject tcp x\nrejection tcp x", "drop tcp x\n# reject tcp x\nrejection tcp x\n"},
		{"alert tcp (msg:\"a \\\nreject b\";)\nreject c", "alert tcp (msg:\"a \\\nreject b\";)\ndrop c\n"},
	} {
		if got := string(normalize(c.in)); got != c.want {
			t.Errorf("normalize(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestTheEnginesWordsReachTheAuthor(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "refused.log"))
	if err != nil {
		t.Fatal(err)
	}
	said := readEngineLog(data)
	var lines []int
	for _, f := range said.Faults {
		lines = append(lines, f.Line)
	}
	if want := []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13}; !slices.Equal(lines, want) {
		t.Errorf("faults in lines %v, want %v", lines, want)
	}
	refusal := said.refusal("web").Error()
	for _, want := range []string{
		`inspection profile "web" is refused, nothing changed`,
		`signatures line 3: unknown rule keyword 'foo'.: alert http any any -> any any (msg:"bad kw"`,
		`signatures line 5: no terminating ";" found:`,
		`signatures line 8: Variable "FOO" is not defined`,
	} {
		if !strings.Contains(refusal, want) {
			t.Errorf("the refusal does not say %q:\n%s", want, refusal)
		}
	}
	many := engineLog{Faults: slices.Repeat([]SignatureFault{{Line: 1, Words: "w", Signature: "s"}}, 25)}
	if got := many.refusal("web"); len(got.Faults) != maxFaults || got.More != 15 || !strings.HasSuffix(got.Error(), "and 15 more") {
		t.Errorf("25 faults: %v", got)
	}
}

func TestCheckProfiles(t *testing.T) {
	p := func(number uint16, name string) bocage.Profile {
		return bocage.Profile{Number: number, Name: name, Signatures: "x"}
	}
	for _, c := range []struct {
		name     string
		profiles []bocage.Profile
		want     string
	}{
		{"none", nil, ""},
		{"two", []bocage.Profile{p(1, "a"), p(4094, "b")}, ""},
		{"zero", []bocage.Profile{p(0, "a")}, "not a VLAN id"},
		{"too large", []bocage.Profile{p(4095, "a")}, "not a VLAN id"},
		{"number twice", []bocage.Profile{p(3, "a"), p(3, "b")}, "same number"},
		{"name twice", []bocage.Profile{p(3, "a"), p(4, "a")}, "given twice"},
		{"no name", []bocage.Profile{p(3, "")}, "no name"},
		{"too long", []bocage.Profile{{Number: 3, Name: "a", Signatures: strings.Repeat("x", maxSignatureBytes+1)}}, "over the limit"},
	} {
		err := checkProfiles(c.profiles)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

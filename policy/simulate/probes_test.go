package simulate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"bocage.dev/bocage"
)

func readProbes(t *testing.T, in io.Reader) (lines []string, err error) {
	t.Helper()
	err = Probes("p", in, func(p bocage.SimulateProbe, at string, broken error) error {
		if !strings.HasPrefix(at, "p:") {
			t.Errorf("stands at %q", at)
		}
		if broken != nil {
			lines = append(lines, "! "+broken.Error())
			return nil
		}
		line := fmt.Sprintf("%s %s %d %s", p.From, p.To, p.Port, p.Protocol)
		if !p.At.IsZero() {
			line += " " + p.At.Format("2006")
		}
		lines = append(lines, strings.TrimSpace(line))
		return nil
	})
	return lines, err
}

func TestProbes(t *testing.T) {
	const fields = "the fields are from, to, name, port, protocol and at"
	for _, test := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{"lines", `{"from":"a","to":"b","port":80}` + "\n\n" + `{"from":"b","to":"c","port":53,"protocol":"UDP","at":"2030-01-01T00:00:00Z"}`, []string{"a b 80", "b c 53 UDP 2030"}, ""},
		{"lines of a Windows editor", "\xef\xbb\xbf" + `{"from":"a","to":"b","port":80}` + "\r\n" + `{"from":"b","to":"c","port":1}` + "\r\n", []string{"a b 80", "b c 1"}, ""},
		{"several objects on a line", `{"from":"a","to":"b"} {"from":"c","to":"d"}{"from":"e",` + "\n" + `"to":"f"}`, []string{"a b 0", "c d 0", "e f 0"}, ""},
		{"objects over several lines", "{\n \"from\": \"a\",\n \"to\": \"b\"\n}\n{\n \"from\": \"c\",\n \"to\": \"d\", \"x\": 1\n}\n{\"from\":\"e\"}", []string{"a b 0", `! p:5: field "x" is unknown: ` + fields, "e  0"}, ""},
		{"a broken line hides no other", `{"from":"a","to":"b"}` + "\n" + `{"from":"a",,}` + "\n" + `{"from":"c","to":"d"}`, []string{"a b 0", "! p:2: is not JSON: invalid character ',' looking for beginning of object key string", "c d 0"}, ""},
		{"a line cut short hides no other", `{"from":"a","to":"b"` + "\n" + `{"from":"c","to":"d"}` + "\n" + `{"from":"e","to":"f"`, []string{"! p:1: is not JSON: it ends inside a value", "c d 0", "! p:3: is not JSON: it ends inside a value"}, ""},
		{"unknown fields and wrong types", `{"from":"a","prt":80}` + "\n" + `{"port":"80"}` + "\n" + `{"port":70000}` + "\n" + `{"port":-1}` + "\n" + `{"from":7}` + "\n" + `{"at":"tomorrow"}` + "\n" + `[{"from":"x"}]` + "\n" + `"x"`, []string{
			`! p:1: field "prt" is unknown: ` + fields,
			"! p:2: port: is text where a number is needed: write 80 without quotes", "! p:3: port: 70000 is not a port from 1 to 65535", "! p:4: port: -1 is not a port from 1 to 65535",
			"! p:5: from: is number where text is needed", "! p:6: at: is not a time such as 2026-11-24T18:00:00Z",
			`! p:7: is array where a probe is needed, such as {"from": "shop/web", "to": "shop/db", "port": 5432}`, `! p:8: is string where a probe is needed, such as {"from": "shop/web", "to": "shop/db", "port": 5432}`}, ""},
		{"an array", "\n[{\"from\":\"a\",\"to\":\"b\"},\n\n {\"from\":\"c\", \"prt\": 1},\n{\"from\":\"e\"}]", []string{"a b 0", `! p:4: field "prt" is unknown: ` + fields, "e  0"}, ""},
		{"an array without an end", `[{"from":"a"},`, []string{"a  0", "! p:1: is not JSON: the list has no end"}, ""},
		{"an array that breaks", "[{\"from\":\"a\"},\n{\"from\":}]", []string{"a  0", "! p:2: is not JSON: invalid character '}' looking for beginning of value"}, ""},
		{"an empty array", "[]\n", nil, ""},
		{"two arrays", "[]\n[{\"from\":\"a\"}]", []string{"! p:2: something follows the list: only one is read"}, ""},
		{"YAML", "# probes\n---\n- from: a\n  to: b\n  port: 80\n\n- {from: c, to: d, protocol: UDP, at: 2030-01-01T00:00:00Z}\n-\n  from: e\n- prt: 1\n- from: f\n", []string{"a b 80", "c d 0 UDP 2030", "e  0", `! p:10: field "prt" is unknown: ` + fields, "f  0"}, ""},
		{"YAML, indented", "  - from: a\n    to: b\n  - from: c\n", []string{"a b 0", "c  0"}, ""},
		{"null alone", "null\n", []string{"! p:1: is null where a probe is needed" + probeExample}, ""},
		{"a line that is null", `{"from":"a"}` + "\nnull\n" + `{"from":"b"}`, []string{"a  0", "! p:2: is null where a probe is needed" + probeExample, "b  0"}, ""},
		{"null in an array", "[{\"from\":\"a\"},\nnull]", []string{"a  0", "! p:2: is null where a probe is needed" + probeExample}, ""},
		{"null in YAML", "# probes\n- from: a\n-\n- ~\n", []string{"a  0", "! p:3: is null where a probe is needed" + probeExample, "! p:4: is null where a probe is needed" + probeExample}, ""},
		{"a YAML map", "from: a\nto: b\n", []string{"! p:1: is no list of probes: write JSON lines, a JSON array, or a YAML list"}, ""},
		{"nothing", "\n  \n# hm\n", nil, "p holds no probe: write one as JSON in a line"},
		{"keys of other letters and keys twice", `{"from":"a","From":"b"}` + "\n" + `{"port":1,"port":2}` + "\n" + `{"port":"web"}`, []string{
			`! p:1: field "From" is unknown: ` + fields, "! p:2: port: is there twice", "! p:3: port: is text where a number is needed"}, ""},
		{"a line that is no probe", strings.Repeat("x", 300<<10), []string{"! p:1: is longer than a probe can be: 64 KiB"}, ""},
		{"a long line first", strings.Repeat("x", 300<<10) + "\n" + `{"from":"a"}`, []string{"! p:1: is longer than a probe can be: 64 KiB", "a  0"}, ""},
		{"a line that never ends", `{"from":"a","to":"` + strings.Repeat("x", 300<<10) + "\"}\n" + `{"from":"c","to":"d"}`, []string{"! p:1: is longer than a probe can be: 64 KiB", "c d 0"}, ""},
		{"a line in between that never ends", `{"from":"a"}` + "\n" + `{"to":"` + strings.Repeat("x", 300<<10) + "\"}\n" + `{"from":"c","to":"d"}`, []string{"a  0", "! p:2: is longer than a probe can be: 64 KiB", "c d 0"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, in := range []io.Reader{strings.NewReader(test.text), iotest.OneByteReader(strings.NewReader(test.text))} {
				got, err := readProbes(t, in)
				if diff := cmp.Diff(test.want, got); diff != "" || fmt.Sprint(err) != test.err && (err != nil || test.err != "") {
					t.Errorf("(-want +got):\n%s%v", diff, err)
				}
			}
		})
	}
}

// TestBrokenProbesKeepTheirEnds: who asked many can tell which was broken.
func TestBrokenProbesKeepTheirEnds(t *testing.T) {
	for _, text := range []string{
		`{"from":"a","to":"b","port":70000}`, `{"port":"80","from":"a","to":"b"}`, `{"from":"a","to":"b","prt":80}`,
		`{"from":"a","to":"b","at":"tomorrow"}`, `[{"from":"a","to":"b","protocol":6}]`, "- {from: a, to: b, port: web}",
	} {
		err := Probes("p", strings.NewReader(text), func(p bocage.SimulateProbe, _ string, broken error) error {
			var why *Unreadable
			if !errors.As(broken, &why) || p.From != "a" || p.To != "b" || p.Port != 0 || why.Line != 1 || !json.Valid(why.Asked) {
				t.Errorf("%s gave %+v, %v", text, p, broken)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// FuzzProbes: nothing makes the reader panic or go on for ever, and each line of
// JSON gives an answer of some kind.
func FuzzProbes(f *testing.F) {
	f.Add([]byte(`{"from":"a","to":"b","port":80}` + "\n" + `{"from":`))
	f.Add([]byte(`[{"from":"a"},{"at":"2030-01-01T00:00:00Z"}]`))
	f.Add([]byte("- from: a\n  to: b\n- {}\n"))
	f.Add([]byte("---\n#\n\n{\n\"from\":\"a\"}\n"))
	s, _ := Compile(small())
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		_ = Probes("p", bytes.NewReader(data), func(p bocage.SimulateProbe, _ string, err error) error {
			if n++; err == nil {
				if a := s.Answer(p); a.Error == "" && a.Verdict == "" {
					t.Fatalf("%+v has neither a verdict nor an error", p)
				}
			}
			return nil
		})
		if n > len(data) {
			t.Fatalf("%d probes in %d bytes", n, len(data))
		}
	})
}

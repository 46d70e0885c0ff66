package stream_test

import (
	"strings"
	"testing"

	"bocage.dev/bocage/stream"
)

func TestCheckSubject(t *testing.T) {
	for subject, valid := range map[string]bool{
		"events": true, "events.h1": true, "agent.h-1.rule_set": true, "A.9": true,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "a.*": false, "a.>": false, ">": false, "a b": false,
		"a\r\nb": false, "é": false, strings.Repeat("a", 257): false,
	} {
		if err := stream.CheckSubject(subject, false); (err == nil) != valid {
			t.Errorf("CheckSubject(%q) = %v, want valid %t", subject, err, valid)
		}
	}
	for subject, valid := range map[string]bool{"agent.*.ruleset": true, "*": true, "a.*": true, "a*": false, "a.>": false, "**": false} {
		if err := stream.CheckSubject(subject, true); (err == nil) != valid {
			t.Errorf("CheckSubject(%q) with wildcards = %v, want valid %t", subject, err, valid)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.*", "a.b", true}, {"*.b", "a.b", true}, {"*", "a", true}, {"a.*.c", "a.b.c", true},
		{"a.*", "a", false}, {"a.*", "a.b.c", false}, {"a", "a.b", false}, {"a.b", "a", false}, {"*", "a.b", false}, {"a.*.c", "a.b.d", false},
	} {
		if got := stream.Match(test.pattern, test.subject); got != test.want {
			t.Errorf("Match(%q, %q) = %t", test.pattern, test.subject, got)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a.*", "a.b")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, pattern, subject string) {
		if stream.CheckSubject(pattern, true) != nil || stream.CheckSubject(subject, false) != nil {
			return
		}
		p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
		want := len(p) == len(s)
		for i := 0; want && i < len(p); i++ {
			want = p[i] == "*" || p[i] == s[i]
		}
		if got := stream.Match(pattern, subject); got != want {
			t.Errorf("Match(%q, %q) = %t", pattern, subject, got)
		}
	})
}

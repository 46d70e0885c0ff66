package bocage

import (
	"regexp"
	"strings"
	"testing"
)

// FuzzForms compares the forms with the regular expressions that Kubernetes gives.
func FuzzForms(f *testing.F) {
	for _, s := range []string{"", "a", "a-b", "a.b", "-a", "a-", "a..b", ".a", "a.", "A_b.c-D", "a/b", "/", "a/", "/b", "a/b/c", "a/b.c", "ä", "a\n",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 253), strings.Repeat("a", 254), "n/" + strings.Repeat("a", 254)} {
		f.Add(s)
	}
	forms := []struct {
		is   func(string) bool
		form *regexp.Regexp
	}{
		{isDNSLabel, regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)},
		{isDNSSubdomain, regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)},
		{isLabelName, regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)},
		{isLabelValue, regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)},
		{IsServiceName, regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)},
		{IsWorkloadName, regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)},
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, form := range forms {
			if got, want := form.is(s), form.form.MatchString(s); got != want {
				t.Errorf("%q as %s: %t", s, form.form, got)
			}
		}
	})
}

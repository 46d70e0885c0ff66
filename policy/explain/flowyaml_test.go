package explain

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

// TestIsPlain holds what is written without quotes against the forms that YAML has.
func TestIsPlain(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z0-9*][-A-Za-z0-9_./*]*$`)
	other := regexp.MustCompile(`^([0-9.]+([eE][0-9]+)?|0x[0-9A-Fa-f]+|0o[0-7]+|[0-9]{4}-[0-9]{2}-[0-9]{2}|(?i:true|false|null|yes|no|on|off|y|n)|\*.*)$`)
	check := func(t interface{ Errorf(string, ...any) }, text string) {
		if want := plain.MatchString(text) && !other.MatchString(text); isPlain([]byte(text)) != want {
			t.Errorf("%q is plain: %t, want %t", text, !want, want)
		}
	}
	for _, text := range []string{"", "a", "*", "*.example.com", "a*", "-a", ".5", "1", "1e5", "1e", "1.2.3", "0x1f", "0xg", "0o17", "0o8", "2026-11-22", "2026-11-2", "10.0.0.0/8",
		"true", "True", "false", "falsely", "null", "yes", "no", "on", "off", "y", "n", "nn", "NO", "Yes", "TRUE", "NULL", "Null", "Y", "N", "~", "None", "shop/web", "a b", "a\n", "\n", "\u00e9", "a:b", "1a"} {
		check(t, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		check(t, rapid.StringMatching(`[-a-z0-9A-Z*./_ :\n"]{0,6}`).Draw(t, "text"))
		check(t, rapid.StringMatching(`[0-9xoeE.-]{0,10}`).Draw(t, "number"))
	})
}

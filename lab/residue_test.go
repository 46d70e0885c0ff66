package lab

import "testing"

func TestMentions(t *testing.T) {
	for _, c := range []struct {
		text string
		want bool
	}{
		{"nginx -c /run/lab/web/nginx.conf", true},
		{"/run/lab", true},
		{"x --dir=/run/lab --y", true},
		{"/run/lab2/x", false},
		{"/run/lab-2 /run/labor", false},
		{"/run/lab.new /run/lab", true},
		{"", false},
	} {
		if got := mentions(c.text, "/run/lab"); got != c.want {
			t.Errorf("%q mentions /run/lab: %v, want %v", c.text, got, c.want)
		}
	}
}

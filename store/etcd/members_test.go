package etcd

import "testing"

func TestTellsProgress(t *testing.T) {
	for version, want := range map[string]bool{
		"3.4.23": false, "3.4.30": false, "3.4.31": true, "3.4.100": true,
		"3.5.0": false, "3.5.12": false, "3.5.13": true, "3.5.21": true,
		"3.6.0": true, "3.6.0-rc.1": false, "3.7.3": true, "3.10.0": true, "4.0.0": true, "10.0.0": true,
		"3.3.27": false, "2.3.8": false, "": false, "3.5": false, "3.5.13-vendor": false, "3.5.-1": false, "v3.5.13": false,
	} {
		if got := tellsProgress(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

func TestDoubtNamesVersions(t *testing.T) {
	for _, c := range []struct {
		m    *membership
		want string
	}{
		{nil, "the members of etcd did not say which version they run"},
		{&membership{}, "the members of etcd did not say which version they run"},
		{&membership{all: true, versions: map[uint64]string{1: "3.6.0"}}, ""},
		{&membership{versions: map[uint64]string{1: "3.4.23", 2: "3.5.21", 3: "3.4.23"}}, "members of etcd run 3.4.23"},
		{&membership{versions: map[uint64]string{1: "3.5.21", 2: ""}}, "members of etcd run a version that is not known, since they do not answer"},
	} {
		if got := c.m.doubt(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a,b.yaml", "c.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for _, test := range []struct{ given, want []string }{
		{[]string{"c.yaml"}, []string{"c.yaml"}},
		{[]string{"a,b.yaml"}, []string{"a,b.yaml"}}, // it exists
		{[]string{"c.yaml,-"}, []string{"c.yaml", "-"}},
		{[]string{"c.yaml", "a,b.yaml", "x,y"}, []string{"c.yaml", "a,b.yaml", "x", "y"}},
		{[]string{`"a,b.yaml",c.yaml`}, []string{"a,b.yaml", "c.yaml"}},
	} {
		var got []string
		for _, text := range test.given {
			if err := (paths{&got}).Set(text); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%q is read as %q, want %q", test.given, got, test.want)
		}
	}
	var got []string
	if err := (paths{&got}).Set(`"a,b`); err == nil {
		t.Errorf("an open quote is read as %q", got)
	}
}

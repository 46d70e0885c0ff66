package main

import (
	"testing"

	"github.com/spf13/cobra"
)

// TestUsageOfReaders: only of what changes nothing need nobody be told that nothing was
// changed; credentials are something.
func TestUsageOfReaders(t *testing.T) {
	for name, want := range map[string]bool{"get": true, "sessions": true, "token": false, "certificate": false, "apply": false} {
		if got := onlyReads(&cobra.Command{Use: name}); got != want {
			t.Errorf("%s only reads: %v", name, got)
		}
	}
}

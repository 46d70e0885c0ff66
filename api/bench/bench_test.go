package main

import (
	"os"
	"slices"
	"testing"
	"time"
)

// TestMain lets the test's own program be the server that is measured.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-serve") {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestMeasure runs the whole of it, small: every list is complete, every event
// arrives at every watcher that wants it.
func TestMeasure(t *testing.T) {
	s := settings{Objects: 700, Namespaces: 20, Watchers: 40, Everything: 2, Streams: 1, Rate: 50, Duration: time.Second, Lists: 1}
	for _, streams := range []int{1, 10} {
		s.Streams = streams
		r, err := measure(t.Context(), t.TempDir(), s)
		if err != nil {
			t.Fatal(err)
		}
		// Each write reaches those who follow everything, and two of a namespace at
		// least.
		if r.List.Objects != 700 || r.Pages.Objects != 700 || r.Watch.Writes != 50 || r.Watch.Delivered != r.Watch.Expected || r.Watch.Delivered < 50*3 {
			t.Errorf("%+v", r)
		}
		if r.Server["watches"].MemoryMiB == 0 || r.Watch.P99 == 0 {
			t.Errorf("nothing was measured: %+v", r)
		}
	}
}

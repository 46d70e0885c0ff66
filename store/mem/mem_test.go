package mem_test

import (
	"testing"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
	"bocage.dev/bocage/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return mem.New() })
}

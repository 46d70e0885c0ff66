package api

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"bocage.dev/bocage/store"
)

// TestDeleteCollectionByMany: of those who delete the same at once each is told that
// it is gone, and it is.
func TestDeleteCollectionByMany(t *testing.T) {
	t.Parallel()
	shared(t, func(t *testing.T, endpoint string) {
		b := replica(t, endpoint)
		const count = 950
		for first := 0; first < count; first += 95 {
			ops := make([]store.Op, 95)
			for i := range ops {
				n := first + i
				value := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":"a%d","namespace":"n%d","uid":"u%d"},"spec":{"workload":{"matchLabels":{"app":"a"}}}}`, n, n%3, n)
				ops[i] = store.Op{Key: fmt.Sprintf("resources/applications/n%d/a%d", n%3, n), Value: []byte(value), IfWas: store.Absent}
			}
			if _, err := b.store.Apply(t.Context(), ops...); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				path := fmt.Sprintf("/apis/bocage.dev/v1/namespaces/n%d/applications", i%3)
				if code, text, _ := b.raw(t, "DELETE", path, "", ""); code != http.StatusOK {
					t.Errorf("%d %.300s", code, text)
				}
				if _, text, _ := b.raw(t, "GET", path, "", ""); !strings.Contains(text, `"items":[]`) {
					t.Errorf("what is left: %.300s", text)
				}
			})
		}
		all.Wait()
	})
}

// TestDeleteCollectionInPart: what may not go is named, with how much went before it.
func TestDeleteCollectionInPart(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	const path = "/api/v1/namespaces"
	for _, name := range []string{"a", "default", "z"} {
		if code, text, _ := b.raw(t, "POST", path, jsonType, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"`+name+`"}}`); code != 201 && code != 409 {
			t.Fatal(code, text)
		}
	}
	code, text, _ := b.raw(t, "DELETE", path, "", "")
	if code != http.StatusForbidden || !strings.Contains(text, "1 of 3 objects are dealt with, the others are as they were: ") || !strings.Contains(text, "may not be deleted") {
		t.Error(code, text)
	}
}

package api

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Quotas bound how many objects of a kind a namespace may hold: an annotation of
// the Namespace such as
//
//	bocage.dev/quota.applications: "500"
//
// which only administrators write, or else what the server's configuration says.
// They are exact: those who create objects under a quota at the same time see
// each other.

const (
	quotaAnnotation = "bocage.dev/quota."
	quotaKeys       = "quotas/"
	defaultObjects  = 1_000_000
)

// quotaOf returns the bound of a kind in a namespace.
func (s *Server) quotaOf(kind bocage.Kind, namespace string) (most int, limited bool) {
	if o := s.view.get(s.kinds["namespaces"], "", namespace); o != nil && bytes.Contains(o.value, []byte(quotaAnnotation)) {
		if object, err := decodeStored(o.value); err == nil {
			if most, err := strconv.Atoi(object.GetAnnotations()[quotaAnnotation+kind.Plural]); err == nil {
				return most, true
			}
		}
	}
	most, limited = s.config.Quotas[kind.Plural]
	return most, limited
}

// withinQuota refuses a new object for which there is no room.
func (b *batch) withinQuota(ch *change, name string) error {
	s := b.server
	if total, most := s.view.total(), s.config.mostObjects(); total+len(b.ops) > most {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"%s %q is forbidden: exceeded quota: this controller keeps %d objects at most: remove some", qualified(ch.kind), name, most).about(ch.kind, name)
	}
	if !ch.kind.Namespaced {
		return nil
	}
	most, limited := s.quotaOf(ch.kind, ch.namespace)
	if !limited {
		return nil
	}
	// Whoever creates under a quota writes the same key: of two at once, one looks
	// again.
	counter := ch.kind.Plural + "/" + ch.namespace
	key := quotaKeys + counter
	if _, counted := b.at[key]; !counted {
		entry, err := s.config.Store.Get(b.ctx, key)
		if err != nil && !isAny(err, store.ErrNotFound) {
			return err
		}
		if err := s.view.fresh(b.ctx); err != nil {
			return err
		}
		if err := b.write(store.Op{Key: key, Value: []byte(name), IfWas: entry.Revision}); err != nil {
			return err
		}
	}
	objects, _, _ := s.view.snapshot(ch.kind.Plural, ch.namespace)
	used := len(objects) + b.creates[counter]
	if used >= most {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"%s %q is forbidden: exceeded quota: %s%s, requested: %s=1, used: %s=%d, limited: %s=%d", qualified(ch.kind), name,
			quotaAnnotation, ch.kind.Plural, ch.kind.Plural, ch.kind.Plural, used, ch.kind.Plural, most).about(ch.kind, name)
	}
	b.creates[counter]++
	return nil
}

func (c *Config) mostObjects() int {
	if c.MaxObjects > 0 {
		return c.MaxObjects
	}
	return defaultObjects
}

// total counts all objects that are in the store.
func (v *view) total() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	total := 0
	for _, c := range v.collections {
		total += len(c.objects)
	}
	return total
}

// quotaFaults checks a namespace's quotas, and who writes them.
func quotaFaults(ch *change, is *bocage.Namespace) (bocage.Faults, error) {
	var faults bocage.Faults
	var was map[string]string
	if ch.old != nil {
		was = ch.old.object.GetAnnotations()
	}
	changed := ""
	for key, value := range is.Annotations {
		plural, ok := strings.CutPrefix(key, quotaAnnotation)
		if !ok {
			continue
		}
		if was[key] != value {
			changed = key
		}
		at := fmt.Sprintf("metadata.annotations[%s]", key)
		if kind, known := bocage.KindNamed(plural); !known || kind.Plural != plural || !kind.Namespaced {
			faults.Add(at, "%q is no kind that is in namespaces: name it as in paths, such as %sapplications", plural, quotaAnnotation)
		}
		if most, err := strconv.Atoi(value); err != nil || most < 0 {
			faults.Add(at, "%q is not a number from 0 up", value)
		}
	}
	for key := range was {
		if _, kept := is.Annotations[key]; !kept && strings.HasPrefix(key, quotaAnnotation) {
			changed = key
		}
	}
	if changed != "" && ch.by.Name != "" && !ch.by.has(RoleAdmin) {
		return nil, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"namespaces %q is forbidden: User %q cannot change %s: quotas are an admin's to set", is.Name, ch.by.Name, changed).about(ch.kind, is.Name)
	}
	return faults, nil
}

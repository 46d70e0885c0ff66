package identity_test

import (
	"strings"
	"testing"

	"bocage.dev/bocage/identity"
)

func TestCheckPath(t *testing.T) {
	long := strings.Repeat("a", 63)
	for path, valid := range map[string]bool{
		"/agent/h1":              true,
		"/agent/" + long:         true,
		"/controller/c-1":        true,
		"/workload/shop/web":     true,
		"/admin/local":           true,
		"/auditor/dora":          true,
		"/owner/shop/olga":       true,
		"/owner/olga":            false,
		"":                       false,
		"/":                      false,
		"agent/h1":               false,
		"/agent":                 false,
		"/agent/":                false,
		"/agent/h1/":             false,
		"/agent/h1/x":            false,
		"/agent/" + long + "a":   false,
		"/agent/h1.>":            false,
		"/agent/>":               false,
		"/agent/*":               false,
		"/agent/h1.h2":           false,
		"/agent/H1":              false,
		"/agent/-h1":             false,
		"/agent/h 1":             false,
		"/agent/h1\n":            false,
		"/agent/h1\x00":          false,
		"/agent/..":              false,
		"/agent/h%31":            false,
		"/agent/h1?x":            false,
		"/agent/h1#x":            false,
		"/agent/hé":              false,
		"/workload/shop":         false,
		"/workload//web":         false,
		"/robot/h1":              false,
		"/Agent/h1":              false,
		"//agent/h1":             false,
		"/agent/../controller/c": false,
	} {
		if err := identity.CheckPath(path); (err == nil) != valid {
			t.Errorf("CheckPath(%q) = %v, want valid %t", path, err, valid)
		}
	}
}

func TestParseID(t *testing.T) {
	for id, valid := range map[string]bool{
		"spiffe://bocage.local/agent/h1":      true,
		"spiffe://a_b-c.d/workload/n/w":       true,
		"spiffe://bocage.local":               false,
		"spiffe:///agent/h1":                  false,
		"https://bocage.local/agent/h1":       false,
		"spiffe://Bocage.local/agent/h1":      false,
		"spiffe://bocage.local:80/agent/h1":   false,
		"spiffe://u@bocage.local/agent/h1":    false,
		"spiffe://bocage.local/agent/h1.>":    false,
		"spiffe://bocage.local/agent/h1?x=y":  false,
		" spiffe://bocage.local/agent/h1":     false,
		"SPIFFE://bocage.local/agent/h1":      false,
		"spiffe://bocage.local/agent/h1/":     false,
		"spiffe://bocage.local/agent//h1":     false,
		"spiffe://bocage.local/controller/%2": false,
	} {
		domain, path, err := identity.ParseID(id)
		if (err == nil) != valid {
			t.Errorf("ParseID(%q) = %v, want valid %t", id, err, valid)
		}
		if err != nil {
			continue
		}
		if again, err := identity.ID(domain, path); err != nil || again != id {
			t.Errorf("ID(%q, %q) = %q, %v", domain, path, again, err)
		}
	}
	if name, ok := identity.AgentName("spiffe://bocage.local/agent/h1"); !ok || name != "h1" {
		t.Errorf("AgentName = %q, %t", name, ok)
	}
	if name, ok := identity.AgentName("spiffe://bocage.local/controller/c1"); ok {
		t.Errorf("AgentName of a controller = %q", name)
	}
	if name, ok := identity.ControllerName("spiffe://bocage.local/controller/c1"); !ok || name != "c1" {
		t.Errorf("ControllerName = %q, %t", name, ok)
	}
	if name, ok := identity.ControllerName("spiffe://bocage.local/agent/h1"); ok || name != "" {
		t.Errorf("ControllerName of an agent = %q", name)
	}
}

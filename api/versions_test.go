package api

import (
	"strings"
	"testing"

	"bocage.dev/bocage"
)

const (
	alphaPath = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
	betaPath  = "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies"
)

func policyText(version, name, network string) string {
	return `{"apiVersion":"policy.networking.k8s.io/` + version + `","kind":"ClusterNetworkPolicy","metadata":{"name":"` + name + `"},"spec":{"tier":"Admin","priority":5,` +
		`"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"networks":["` + network + `"]}]}]}}`
}

// TestVersions writes and reads ClusterNetworkPolicies in both versions: there is one
// object, and each path shows its own version, in every form.
func TestVersions(t *testing.T) {
	b := start(t, nil)
	ask := func(want int, method, path, contentType, body string, headers ...string) string {
		t.Helper()
		code, text, _ := b.raw(t, method, path, contentType, body, headers...)
		if code != want {
			t.Fatalf("%s %s: %d, want %d: %.600s", method, path, code, want, text)
		}
		return text
	}
	const json = "application/json"
	both := map[string]string{alphaPath: bocage.ClusterNetworkPolicyAPIVersion, betaPath: bocage.ClusterNetworkPolicyLaterVersion}
	shows := func(text, version string) {
		t.Helper()
		for _, other := range both {
			// Owners of fields are kept by the version in which objects are.
			_, rest, _ := strings.Cut(text, `"apiVersion":"`+other+`","kind":"ClusterNetworkPolicy`)
			if (rest != "") != (other == version) {
				t.Errorf("want %s only: %.600s", version, text)
			}
		}
	}

	shows(ask(201, "POST", alphaPath, json, policyText("v1alpha2", "a", "10.0.0.0/8")), both[alphaPath])
	shows(ask(201, "POST", betaPath, json, policyText("v1beta1", "b", "10.0.0.0/8")), both[betaPath])
	for path, version := range both {
		for _, name := range []string{"a", "b"} {
			shows(ask(200, "GET", path+"/"+name, "", ""), version)
		}
		if list := ask(200, "GET", path, "", ""); !strings.Contains(list, `"kind":"ClusterNetworkPolicyList","apiVersion":"`+version+`"`) {
			t.Errorf("%.200s", list)
		} else {
			shows(list, version)
		}
		shows(ask(200, "GET", path+"?includeObject=Object", "", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), version)
		if text := ask(200, "GET", path+"/a", "", "", "Accept", "application/yaml"); !strings.Contains(text, "apiVersion: "+version+"\n") {
			t.Error(text)
		}
		shows(ask(200, "GET", path+"?watch=1&timeoutSeconds=1", "", ""), version)
		shows(ask(200, "GET", path+"?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "", ""), version)
		shows(ask(200, "PATCH", path+"/b", "application/merge-patch+json", `{"metadata":{"labels":{"x":"`+version[len(version)-3:]+`"}}}`), version)
		shows(ask(200, "PATCH", path+"/b", "application/json-patch+json", `[{"op":"test","path":"/apiVersion","value":"`+version+`"},{"op":"add","path":"/spec/priority","value":7}]`), version)
	}

	// The path says the version.
	ask(422, "POST", betaPath, json, policyText("v1alpha2", "c", "10.0.0.0/8"))
	ask(422, "POST", alphaPath, json, policyText("v1beta1", "c", "10.0.0.0/8"))
	ask(404, "GET", "/apis/policy.networking.k8s.io/v1/clusternetworkpolicies", "", "")
	ask(404, "GET", "/apis/networking.k8s.io/v1beta1/networkpolicies", "", "")

	// v1beta1 is stricter, but not about what is there.
	ask(422, "POST", betaPath, json, policyText("v1beta1", "loose", "10.0.0.1/8"))
	ask(201, "POST", alphaPath, json, policyText("v1alpha2", "loose", "10.0.0.1/8"))
	shows(ask(200, "PATCH", betaPath+"/loose", "application/merge-patch+json", `{"metadata":{"labels":{"x":"y"}}}`), both[betaPath])
	ask(422, "PATCH", betaPath+"/loose", "application/merge-patch+json", `{"spec":{"priority":9}}`)

	// Owners of fields conflict across versions.
	apply := func(want int, path, version, manager, network string) {
		t.Helper()
		ask(want, "PATCH", path+"/owned?fieldManager="+manager, "application/apply-patch+yaml", policyText(version, "owned", network))
	}
	apply(201, betaPath, "v1beta1", "one", "10.0.0.0/8")
	apply(200, alphaPath, "v1alpha2", "one", "11.0.0.0/8")
	apply(409, betaPath, "v1beta1", "two", "12.0.0.0/8")

	shows(ask(200, "GET", betaPath+"/owned", "", ""), both[betaPath])
	ask(200, "DELETE", betaPath+"/a", "", "")
	ask(404, "GET", alphaPath+"/a", "", "")
}

package manifest_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestNetworkPolicyAsUpstream compares the parts of a NetworkPolicy that upstream's
// library checks: selectors, names of ports and CIDRs.
func TestNetworkPolicyAsUpstream(t *testing.T) {
	text := rapid.OneOf(rapid.StringMatching(`[a-z0-9A-Z./_-]{0,20}`), rapid.StringMatching(`[a-z0-9-]{1,16}`), rapid.String())
	cidr := rapid.OneOf(rapid.StringMatching(`[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}`), rapid.StringMatching(`[0-9a-f:]{2,20}/[0-9]{1,3}`), rapid.String(),
		rapid.SampledFrom([]string{"10.0.0.0/8", "::/0", "fd00::/8", "::ffff:10.0.0.0/104", "10.1.0.0/8", "10.0.0.0/08"}))
	operator := rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist", "", "Gt", "in"})
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			p := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "p"}}
			var refused bool
			switch rapid.IntRange(0, 2).Draw(t, "part") {
			case 0:
				r := bocage.Requirement{Key: text.Draw(t, "key"), Operator: operator.Draw(t, "operator"), Values: rapid.SliceOfN(text, 0, 2).Draw(t, "values")}
				p.Spec.PodSelector = bocage.Selector{MatchLabels: rapid.MapOfN(text, text, 0, 1).Draw(t, "labels"), MatchExpressions: []bocage.Requirement{r}}
				theirs := &metav1.LabelSelector{MatchLabels: p.Spec.PodSelector.MatchLabels,
					MatchExpressions: []metav1.LabelSelectorRequirement{{Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values}}}
				refused = len(metav1validation.ValidateLabelSelector(theirs, metav1validation.LabelSelectorValidationOptions{}, nil)) > 0
			case 1:
				name := text.Draw(t, "port")
				p.Spec.Ingress = []bocage.NetworkPolicyIngressRule{{Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Name: name}}}}}
				refused = len(validation.IsValidPortName(name)) > 0
			default:
				block := cidr.Draw(t, "CIDR")
				p.Spec.Ingress = []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{{IPBlock: &bocage.IPBlock{CIDR: block}}}}}
				// Bits beyond the length are taken here, as upstream took them for years.
				theirs := block
				if prefix, err := netip.ParsePrefix(block); err == nil {
					theirs = prefix.Masked().String()
				}
				refused = block == "" || len(validation.IsValidCIDRForLegacyField(nil, theirs, true, nil)) > 0
			}
			if faults := p.Validate(); refused != (len(faults) > 0) {
				data, _ := json.Marshal(p.Spec)
				t.Fatalf("upstream refuses it: %t, we find %q: %s", refused, faults, data)
			}
		}
	})
}

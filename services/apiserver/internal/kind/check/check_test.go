package check_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// TestFastNamesAgree compares the checks that work on bytes with apimachinery's regular
// expressions.
func TestFastNamesAgree(t *testing.T) {
	for name, pair := range map[string][2]func(string) []string{
		"Label":      {check.Label, validation.IsDNS1123Label},
		"Subdomain":  {check.Subdomain, validation.IsDNS1123Subdomain},
		"LabelKey":   {check.LabelKey, content.IsLabelKey},
		"LabelValue": {check.LabelValue, content.IsLabelValue},
		"ConfigKey":  {check.ConfigKey, validation.IsConfigMapKey},
		"EnvName":    {check.EnvName, validation.IsRelaxedEnvVarName},
	} {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			s := rapid.OneOf(
				rapid.StringMatching(`[-a-zA-Z0-9_./ü= ]{0,12}`),
				rapid.StringMatching(`[a-z0-9][-a-z0-9.]{0,260}`),
				rapid.StringMatching(`([a-z.]{1,8}/)?[-A-Za-z0-9_.]{0,70}`),
			).Draw(t, "s")
			if got, want := fmt.Sprint(pair[0](s)), fmt.Sprint(pair[1](s)); got != want {
				t.Fatalf("%q: got %s, want %s", s, got, want)
			}
		}))
	}
}

func TestSeen(t *testing.T) {
	var s check.Seen
	for i := range 100 {
		v := strings.Repeat("x", i)
		if s.Has(v) || s.Add(v) {
			t.Fatalf("%d was seen before it was added", i)
		}
		if !s.Has(v) || !s.Add(v) {
			t.Fatalf("%d was not seen after it was added", i)
		}
	}
	if !s.Has("") || !s.Has("xxx") {
		t.Fatal("the first strings were forgotten after many were added")
	}
}

func TestDifferences(t *testing.T) {
	type inner struct {
		List []string `json:"list"`
	}
	type outer struct {
		A int   `json:"a"`
		B inner `json:"b"`
	}
	got := check.Differences(outer{1, inner{[]string{"x", "y"}}}, outer{2, inner{[]string{"x", "z"}}})
	if want := "a: 1 -> 2\nb.list[1]: \"y\" -> \"z\""; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if d := check.Differences(outer{}, outer{}); d != "" {
		t.Errorf("equal values differ: %q", d)
	}
}

func TestSame(t *testing.T) {
	seconds := int64(0)
	for name, c := range map[string]struct {
		a, b *corev1.PodSpec
		want bool
	}{
		"nothing":                           {nil, nil, true},
		"one is nil":                        {&corev1.PodSpec{}, nil, false},
		"empty and missing":                 {&corev1.PodSpec{Containers: []corev1.Container{}}, &corev1.PodSpec{NodeSelector: map[string]string{}}, true},
		"zero and missing":                  {&corev1.PodSpec{ActiveDeadlineSeconds: &seconds}, &corev1.PodSpec{}, false},
		"another name":                      {&corev1.PodSpec{NodeName: "a"}, &corev1.PodSpec{NodeName: "b"}, false},
		"the same quantity in another form": {&corev1.PodSpec{Overhead: cpu("1")}, &corev1.PodSpec{Overhead: cpu("1000m")}, true},
		"another quantity":                  {&corev1.PodSpec{Overhead: cpu("1")}, &corev1.PodSpec{Overhead: cpu("2")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := check.Same(c.a, c.b); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func cpu(q string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(q)}
}

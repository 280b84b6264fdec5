//go:build !race

// The race detector allocates as well, and these tests bound what is allocated.

package pipeline_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
)

// each joins f(0) to f(n-1) with commas.
func each(n int, f func(i int) string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(f(i))
	}
	return b.String()
}

func same(n int, s string) string { return each(n, func(int) string { return s }) }

// TestHostileBodies sends small bodies that are expensive to process. Each must be refused, with
// a bounded amount of memory allocated.
func TestHostileBodies(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a", "k", strings.Repeat("x", 1000))
	f.mustCreate(cm)
	p := pod("p")
	f.mustCreate(p)
	create := func(obj string, media pipeline.MediaType, body string) func() error {
		target, gvk := pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, corev1.SchemeGroupVersion.WithKind("ConfigMap")
		if obj == "pods" {
			target.Resource, gvk.Kind = podGVR, "Pod"
		}
		return func() error {
			_, err := f.Create(f.ctx, target, pipeline.Body{Data: []byte(body), Type: media, GVK: gvk}, pipeline.WriteOptions{})
			return err
		}
	}
	patch := func(kind types.PatchType, text string) func() error {
		return func() error { _, err := f.patch(cm, kind, text); return err }
	}
	message := func(field protowire.Number, inner []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), inner)
	}
	small := string(message(2, message(2, message(8, message(1, append(message(1, []byte("cpu")), message(2, message(1, []byte("1e-1000000000")))...))))))
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, same(9, "*"+string(c-1)))
	}
	for name, test := range map[string]struct {
		request func() error
		code    int32
		text    string
		most    uint64 // MiB allocated
	}{
		"doubling copies": {patch(types.JSONPatchType, "["+each(24, func(i int) string {
			return fmt.Sprintf(`{"op":"copy","from":"/data","path":"/data/%d"}`, i)
		})+"]"), 422, "", 64},
		"too many operations": {patch(types.JSONPatchType, "["+same(10001, `{"op":"test","path":"/kind","value":1}`)+"]"), 413, "maximum operations in a JSON patch is 10000", 64},
		"tests of a large value": {patch(types.JSONPatchType, `[{"op":"add","path":"/data/l","value":"`+strings.Repeat("x", 1<<20)+`"},`+
			same(5000, `{"op":"test","path":"/data","value":{}}`)+"]"), 413, "too many operations for the size", 64},
		"insertions into a large list": {patch(types.JSONPatchType, `[{"op":"add","path":"/data/l","value":[`+same(500000, "0")+`]},`+
			same(5000, `{"op":"add","path":"/data/l/0","value":0}`)+"]"), 413, "too many operations for the size", 128},
		"depth by moves": {patch(types.JSONPatchType, "["+same(1000, `{"op":"move","from":"/a","path":"/b/a"},{"op":"move","from":"/b","path":"/a"}`)+"]"),
			400, "nests the object deeper than 1000 levels", 64},
		"a deep path": {patch(types.JSONPatchType, `[{"op":"remove","path":"`+strings.Repeat("/a", 100000)+`"}]`), 400, "nests the object deeper", 64},
		"a strategic patch of long lists": {func() error {
			_, err := f.patch(p, types.StrategicMergePatchType, `{"spec":{"containers":[`+each(40000, func(i int) string { return fmt.Sprintf(`{"name":"%d"}`, i) })+"]}}")
			return err
		}, 413, "too many elements", 64},
		"a merge patch of many keys": {patch(types.MergePatchType, `{"metadata":{"labels":{`+each(20000, func(i int) string { return fmt.Sprintf(`"%d":"_"`, i) })+"}}}"),
			422, "a valid label must be", 256},
		"many invalid labels": {create("", pipeline.JSON, `{"metadata":{"name":"b","labels":{`+each(20000, func(i int) string { return fmt.Sprintf(`"_%d":""`, i) })+"}}}"),
			422, "too many errors, only the first 250 are shown", 256},
		"many empty objects":  {create("pods", pipeline.JSON, `{"spec":{"containers":[`+same(300000, "{}")+"]}}"), 413, "contains more than 50000 objects", 8},
		"many empty messages": {create("pods", pipeline.Message, string(message(2, []byte(strings.Repeat("\x12\x00", 1<<20))))), 400, "would take more than", 8},
		"many empty messages in an envelope": {create("pods", pipeline.Protobuf, "k8s\x00"+string(message(2, message(2, []byte(strings.Repeat("\x12\x00", 1<<20)))))),
			400, "would take more than", 16},
		"a number of many digits":      {create("pods", pipeline.JSON, `{"spec":{"overhead":{"cpu":"`+strings.Repeat("9", 2<<20)+`"}}}`), 400, "a quantity has at most", 8},
		"a small exponent":             {create("pods", pipeline.JSON, `{"spec":{"overhead":{"cpu":"1e-1000000000"}}}`), 400, "a quantity has at most", 8},
		"a small exponent, escaped":    {create("pods", pipeline.JSON, `{"spec":{"overhead":{"cpu":"1\u0065-1000000000"}}}`), 400, "a quantity has at most", 8},
		"a small exponent, unquoted":   {create("pods", pipeline.YAML, `spec: {overhead: {cpu: 1e-1000000000q}}`), 400, "quantities must match", 8},
		"a small exponent in protobuf": {create("pods", pipeline.Message, small), 400, "a quantity has at most", 8},
		"a small exponent in a merge patch": {func() error {
			_, err := f.patch(p, types.MergePatchType, `{"spec":{"overhead":{"cpu":"1e-1000000000"}}}`)
			return err
		}, 400, "a quantity has at most", 8},
		"a small exponent in an apply": {func() error {
			_, err := f.patch(p, types.ApplyPatchType, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"overhead":{"cpu":"1e-1000000000"}}}`, pipeline.WriteOptions{FieldManager: "m"})
			return err
		}, 400, "a quantity has at most", 8},
		"aliases of a long string": {create("", pipeline.YAML, "a: &a "+strings.Repeat("x", 10000)+"\nb: ["+same(50000, "*a")+"]"), 400, "expands to more than", 128},
		"aliases of aliases":       {create("", pipeline.YAML, laughs), 400, "excessive aliasing", 64},
		"aliases in an apply": {patch(types.ApplyPatchType, "a: &a "+strings.Repeat("x", 10000)+"\nb: ["+same(50000, "*a")+"]"),
			422, "fieldManager", 1},
		"aliases in an apply with a manager": {func() error {
			_, err := f.patch(cm, types.ApplyPatchType, "a: &a "+strings.Repeat("x", 10000)+"\nb: ["+same(50000, "*a")+"]", pipeline.WriteOptions{FieldManager: "m"})
			return err
		}, 400, "expands to more than", 128},
		"a selector of many requirements": {func() error {
			_, err := f.List(f.ctx, pipeline.Target{Resource: podGVR}, pipeline.ListOptions{LabelSelector: same(50000, "!a")})
			return err
		}, 400, "more than 10000 requirements", 8},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := test.request()
			runtime.ReadMemStats(&after)
			status, ok := err.(apierrors.APIStatus)
			if !ok || status.Status().Code != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %.300v, want %d with %q", err, test.code, test.text)
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > test.most {
				t.Errorf("allocated %d MiB, want at most %d", got, test.most)
			}
		})
	}
}

// TestLargeBodies checks that large legitimate bodies are accepted.
func TestLargeBodies(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a")
	f.mustCreate(cm)
	if _, err := f.patch(cm, types.JSONPatchType, `[{"op":"add","path":"/data","value":{}},`+each(9999, func(i int) string {
		return fmt.Sprintf(`{"op":"add","path":"/data/%d","value":"v"}`, i)
	})+"]"); err != nil {
		t.Error(err)
	}
	if _, err := f.patch(cm, types.MergePatchType, `{"data":{`+each(20000, func(i int) string { return fmt.Sprintf(`"k%d":"v"`, i) })+"}}"); err != nil {
		t.Error(err)
	}
	p := pod("p")
	for i := range 2000 {
		p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprint("NAME_", i), Value: strings.Repeat("v", 100)})
	}
	f.mustCreate(p)
	if _, err := f.patch(p, types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"c","env":[`+
		each(2000, func(i int) string { return fmt.Sprintf(`{"name":"NAME_%d","value":"%s"}`, i, strings.Repeat("v", 100)) })+"]}]}}"); err != nil {
		t.Errorf("%.300v", err)
	}
}

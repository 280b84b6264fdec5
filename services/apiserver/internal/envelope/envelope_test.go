package envelope_test

import (
	"bytes"
	"errors"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	. "keelson.dev/services/apiserver/internal/envelope"
)

const (
	trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	id    = "\x00\x01write id"
)

func examplePod() *corev1.Pod {
	grace := int64(30)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web", Namespace: "shop", UID: "u-1", Generation: 3, GenerateName: "web-",
			CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0)),
			Labels:            map[string]string{"app": "web"},
		},
		Spec:   corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: "nginx"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func kubernetes(t testing.TB) *protobuf.Serializer {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return protobuf.NewSerializer(scheme, scheme)
}

func TestKubernetesDecodesOurs(t *testing.T) {
	pod := examplePod()
	b, err := EncodeObject(Value{APIVersion: "v1", Kind: "Pod", Traceparent: trace, WriteID: id, Defaults: 1 << 63}, pod)
	if err != nil {
		t.Fatal(err)
	}
	obj, gvk, err := kubernetes(t).Decode(b, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	if gvk.Kind != "Pod" || !equality.Semantic.DeepEqual(obj, pod) {
		t.Fatalf("got %v %+v", gvk, obj)
	}
	raw, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if v.APIVersion != "v1" || v.Kind != "Pod" || v.Traceparent != trace || v.WriteID != id || v.Defaults != 1<<63 || v.JSON || !bytes.Equal(v.Raw, raw) || WriteID(b) != id {
		t.Fatalf("got %+v", v)
	}
	if &v.Raw[0] != &b[bytes.Index(b, raw)] {
		t.Fatal("decoding copied the object")
	}
	if cap(b) != len(b) {
		t.Fatalf("%d bytes in a buffer of %d", len(b), cap(b))
	}
}

func TestDecodesKubernetes(t *testing.T) {
	pod := examplePod()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	var buf bytes.Buffer
	if err := kubernetes(t).Encode(pod, &buf); err != nil {
		t.Fatal(err)
	}
	v, err := Decode(buf.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got := &corev1.Pod{}
	if err := got.Unmarshal(v.Raw); err != nil {
		t.Fatal(err)
	}
	pod.TypeMeta = metav1.TypeMeta{}
	if v.APIVersion != "v1" || v.Kind != "Pod" || v.Traceparent != "" || v.WriteID != "" || !equality.Semantic.DeepEqual(got, pod) {
		t.Fatalf("got %+v %+v", v, got)
	}
	doc := []byte(" {\"kind\":\"Thing\"}")
	if v, err := Decode(doc); err != nil || !v.JSON || !bytes.Equal(v.Raw, doc) {
		t.Fatalf("JSON: %+v %v", v, err)
	}
}

func TestMalformedValues(t *testing.T) {
	field := func(num protowire.Number, b string) []byte {
		return protowire.AppendBytes(protowire.AppendTag([]byte("k8s\x00"), num, protowire.BytesType), []byte(b))
	}
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"text":               []byte("hello"),
		"half a magic":       []byte("k8s"),
		"cut off":            field(2, "xxxx")[:8],
		"hostile length":     append([]byte("k8s\x00\x12"), 0xff, 0xff, 0xff, 0xff, 0x7f),
		"broken type":        field(1, "\x0a\xff"),
		"broken extension":   field(1000, "\x0a\xff"),
		"other encoding":     field(3, "gzip"),
		"other contents":     field(4, "application/json"),
		"endless varint":     append([]byte("k8s\x00"), bytes.Repeat([]byte{0xff}, 20)...),
		"unterminated group": []byte("k8s\x00\x0b"),
	} {
		if v, err := Decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %+v, %v", name, v, err)
		}
		if WriteID(b) != "" {
			t.Errorf("%s: got a write id", name)
		}
	}
}

func TestResourceVersion(t *testing.T) {
	for name, pod := range map[string]*corev1.Pod{"empty": {}, "example": examplePod()} {
		for _, before := range []string{"", "1", "99999999999"} {
			pod.ResourceVersion = before
			raw, err := pod.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			got, err := WithResourceVersion(raw, 1234567)
			if err != nil {
				t.Fatal(err)
			}
			pod.ResourceVersion = "1234567"
			// The bytes are those that an encoder would have written.
			if direct, err := pod.Marshal(); err != nil || !bytes.Equal(got, direct) {
				t.Errorf("%s from %q: %q, want %q", name, before, got, direct)
			}
		}
	}
	if got, err := WithResourceVersion(nil, 5); err != nil || string(got) != "\x0a\x03\x32\x015" {
		t.Errorf("object without metadata: %q, %v", got, err)
	}
	for _, b := range []string{"\x0a", "\x0a\x05x", "\x0a\x02\x32\x09", "\xff"} {
		if _, err := WithResourceVersion([]byte(b), 1); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

// FuzzResourceVersion compares splicing with decoding, setting the field and encoding.
func FuzzResourceVersion(f *testing.F) {
	for _, pod := range []*corev1.Pod{{}, examplePod(), {ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}} {
		raw, err := pod.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, int64(42))
		f.Add(append(raw, raw...), int64(0))
	}
	f.Fuzz(func(t *testing.T, raw []byte, rev int64) {
		spliced, err := WithResourceVersion(raw, rev)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		var before, after metav1.PartialObjectMetadata
		if before.Unmarshal(raw) != nil || err != nil { // our decoder refuses some input that Kubernetes' accepts
			return
		}
		if err := after.Unmarshal(spliced); err != nil {
			t.Fatalf("the result cannot be decoded: %v", err)
		}
		if after.ResourceVersion != strconv.FormatInt(rev, 10) {
			t.Fatalf("set to %d, decoded %q", rev, after.ResourceVersion)
		}
		before.ResourceVersion, after.ResourceVersion = "", ""
		if !equality.Semantic.DeepEqual(before, after) {
			t.Fatalf("changed\n%+v\n%+v", before, after)
		}
	})
}

func FuzzDecode(f *testing.F) {
	b, err := EncodeObject(Value{APIVersion: "v1", Kind: "Pod", Traceparent: trace, WriteID: id, Defaults: 1 << 63}, examplePod())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if v.JSON {
			return
		}
		stored, err := EncodeObject(v, encoded(v.Raw))
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(stored)
		if err != nil || again.Defaults != v.Defaults || again.APIVersion != v.APIVersion || again.Kind != v.Kind || !bytes.Equal(again.Raw, v.Raw) || again.Traceparent != v.Traceparent || again.WriteID != v.WriteID {
			t.Fatalf("%+v became %+v, %v", v, again, err)
		}
	})
}

// encoded is a message in its encoded form.
type encoded []byte

func (e encoded) Size() int { return len(e) }

func (e encoded) MarshalToSizedBuffer(b []byte) (int, error) { return copy(b, e), nil }

func BenchmarkWithResourceVersion(b *testing.B) {
	raw, err := examplePod().Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := WithResourceVersion(raw, 1234567); err != nil {
			b.Fatal(err)
		}
	}
}

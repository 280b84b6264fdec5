package codec

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubejson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	kubeproto "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"keelson.dev/services/apiserver/internal/resource"
)

var podGVK = corev1.SchemeGroupVersion.WithKind("Pod")

func input(data string, media MediaType, v Validation) Input {
	return Input{
		Data: []byte(data), Type: media, Want: podGVK, Validation: v,
		New: func() resource.Object { return &corev1.Pod{} },
		Known: func(gvk schema.GroupVersionKind) bool {
			return gvk.Kind == "Pod" || gvk.Kind == "Service" || gvk.Kind == "Deployment"
		},
	}
}

func TestDecodeText(t *testing.T) {
	for name, test := range map[string]struct {
		data  string
		media MediaType
		v     Validation
		warns int
		text  string
	}{
		"json":               {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`, JSON, Strict, 0, ""},
		"yaml":               {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}", YAML, Strict, 0, ""},
		"no type":            {`{"metadata":{"name":"a"}}`, JSON, Strict, 0, ""},
		"unknown warned":     {`{"kind":"Pod","foo":1,"metadata":{"name":"a","bar":2}}`, JSON, Warn, 2, ""},
		"unknown by default": {`{"kind":"Pod","foo":1}`, JSON, "", 1, ""},
		"unknown ignored":    {`{"kind":"Pod","foo":1}`, JSON, Ignore, 0, ""},
		"unknown refused":    {`{"kind":"Pod","apiVersion":"v1","foo":1}`, JSON, Strict, 0, `Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "foo"`},
		"yaml duplicate":     {"kind: Pod\nmetadata:\n  name: a\n  name: b", YAML, Strict, 0, `strict decoding error: yaml: unmarshal errors:`},
		"case matters":       {`{"kind":"Pod","apiVersion":"v1","Metadata":{}}`, JSON, Strict, 0, `unknown field "Metadata"`},
		"syntax":             {`{"kind":"Pod",`, JSON, Strict, 0, `the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input ({"kind":"Pod",)`},
		"wrong type":         {`{"kind":"Pod","apiVersion":"v1","spec":{"hostNetwork":"yes"}}`, JSON, Strict, 0, `Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool`},
		"quantity":           {`{"kind":"Pod","apiVersion":"v1","spec":{"overhead":{"cpu":"lots"}}}`, JSON, Strict, 0, "quantities must match the regular expression"},
		"other kind":         {`{"kind":"Service","apiVersion":"v1"}`, JSON, Strict, 0, `Service in version "v1" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion`},
		"other version":      {`{"kind":"Pod","apiVersion":"v2"}`, JSON, Strict, 0, `the API version in the data (v2) does not match the expected API version (v1)`},
		"unknown kind":       {`{"kind":"Thing","apiVersion":"v1"}`, JSON, Strict, 0, `no kind "Thing" is registered for version "v1"`},
		"empty":              {``, JSON, Strict, 0, "the object provided is unrecognized (must be of type Pod)"},
		"number":             {`5`, JSON, Strict, 0, "the object provided is unrecognized"},
		"deep":               {strings.Repeat("[", 5000) + strings.Repeat("]", 5000), JSON, Strict, 0, "nests deeper than 1000 levels"},
		"deep yaml":          {strings.Repeat("[", 5000) + strings.Repeat("]", 5000), YAML, Strict, 0, ""},
		"media type":         {`{}`, "text/plain", Strict, 0, "the body of the request was in an unknown format"},
	} {
		obj, warns, err := Decode(input(test.data, test.media, test.v))
		switch {
		case name == "deep yaml":
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		case test.text != "":
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: got %v, want %q", name, err, test.text)
			}
		case err != nil || len(warns) != test.warns:
			t.Errorf("%s: %v, warnings %v", name, err, warns)
		case !obj.GetObjectKind().GroupVersionKind().Empty():
			t.Errorf("%s: the type was left in the object", name)
		}
	}
}

func TestYAMLBombs(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [*" + p + strings.Repeat(",*"+p, 8) + "]\n"
	}
	if _, _, err := Decode(input(bomb, YAML, Warn)); err == nil {
		t.Error("a document that expands without bound was decoded")
	}
}

func examplePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns", ResourceVersion: "7", Labels: map[string]string{"x": "<&>"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

// reference returns Kubernetes' serializers.
func reference() (text, proto runtime.Serializer) {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		panic(err)
	}
	return kubejson.NewSerializerWithOptions(kubejson.DefaultMetaFactory, s, s, kubejson.SerializerOptions{}), kubeproto.NewSerializer(s, s)
}

func TestEncodingMatchesKubernetes(t *testing.T) {
	pod := examplePod()
	typed := pod.DeepCopy()
	typed.SetGroupVersionKind(podGVK)
	text, proto := reference()
	for media, s := range map[MediaType]runtime.Serializer{JSON: text, Protobuf: proto} {
		var want bytes.Buffer
		if err := s.Encode(typed, &want); err != nil {
			t.Fatal(err)
		}
		got, err := AppendObject(nil, media, podGVK, pod)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s: %v\ngot  %q\nwant %q", media, err, got, want.Bytes())
		}
		back, _, err := Decode(input(string(got), media, Strict))
		if err != nil || asText(back) != asText(pod) {
			t.Errorf("%s: decoded again as %s, %v", media, asText(back), err)
		}
	}
	if pod.Kind != "" {
		t.Error("encoding changed the object")
	}
	y, err := AppendObject(nil, YAML, podGVK, pod)
	if err != nil || !strings.Contains(string(y), "kind: Pod\n") {
		t.Errorf("%s, %v", y, err)
	}
}

func asText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestHostileProtobuf(t *testing.T) {
	raw, err := examplePod().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	whole := append(AppendEnvelopeHead(nil, podGVK, len(raw)), raw...)
	whole = append(whole, EnvelopeTail...)
	for i := range len(whole) - len(EnvelopeTail) { // every truncation
		obj, _, err := Decode(Input{Data: whole[:i], Type: Protobuf, Want: podGVK, New: func() resource.Object { return &corev1.Pod{} }})
		if err == nil && asText(obj) != asText(&corev1.Pod{}) { // a truncation between two fields is a valid, shorter message
			t.Errorf("%d of %d bytes were decoded as %s", i, len(whole), asText(obj))
		}
	}
	for name, data := range map[string]string{
		"no magic":       "\x0a\x00",
		"hostile length": "k8s\x00\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
		"bad group":      "k8s\x00\x0a\x09\x0a\x05a/b/c\x12\x00",
		"encoded":        "k8s\x00\x1a\x04gzip",
	} {
		if _, _, err := Decode(Input{Data: []byte(data), Type: Protobuf, Want: podGVK, New: func() resource.Object { return &corev1.Pod{} }}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestRepeatedKeys(t *testing.T) {
	_, warnings, err := Decode(input("kind: Pod\napiVersion: v1\nmetadata: {name: a, name: b}\nspec:\n  nodeName: a\n  nodeName: b\n", YAML, Warn))
	want := []string{`line 3: key "name" already set in map`, `line 6: key "nodeName" already set in map`}
	if err != nil || !slices.Equal(warnings, want) {
		t.Errorf("%q, %v; want %q", warnings, err, want)
	}
}

// FuzzDecode feeds arbitrary input to every decoder.
func FuzzDecode(f *testing.F) {
	pod := examplePod()
	raw, err := pod.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	whole := append(AppendEnvelopeHead(nil, podGVK, len(raw)), raw...)
	text, err := AppendObject(nil, JSON, podGVK, pod)
	if err != nil {
		f.Fatal(err)
	}
	for i, seed := range [][]byte{raw, whole, text, []byte("kind: Pod\nspec: {containers: [{name: a}]}")} {
		f.Add(seed, uint8(i))
	}
	media := []MediaType{Message, Protobuf, JSON, YAML}
	f.Fuzz(func(t *testing.T, data []byte, m uint8) {
		if len(data) > 1<<16 {
			return
		}
		in := input(string(data), media[int(m)%len(media)], Warn)
		in.Declared = podGVK
		obj, _, err := Decode(in)
		if err != nil {
			return
		}
		if _, err := AppendObject(nil, Protobuf, podGVK, obj); err != nil {
			t.Errorf("a decoded object cannot be encoded: %v", err)
		}
	})
}

package descriptor

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind"
)

func TestKindsHaveDescriptors(t *testing.T) {
	for _, k := range kind.All() {
		if _, err := (Resolver{}).FindDescriptorByName(protoreflect.FullName(k.ProtoName)); err != nil {
			t.Errorf("%s: %v", k.ProtoName, err)
		}
	}
}

func TestPodAsJSON(t *testing.T) {
	d, err := Resolver{}.FindDescriptorByName("k8s.io.api.core.v1.Pod")
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.PodSpec{NodeName: "n"}}
	data, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m := dynamicpb.NewMessage(d.(protoreflect.MessageDescriptor))
	if err := proto.Unmarshal(data, m); err != nil {
		t.Fatal(err)
	}
	spec := m.Get(m.Descriptor().Fields().ByName("spec")).Message()
	if got := spec.Get(spec.Descriptor().Fields().ByName("nodeName")).String(); got != "n" {
		t.Errorf("nodeName is %q", got)
	}
	if _, err := protojson.Marshal(m); err != nil {
		t.Error(err)
	}
}

package client

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"
)

// typePrefix precedes the message name in an Any's type URL.
const typePrefix = "type.googleapis.com/"

// metadataURL is the type of objects of which only the metadata was asked for.
const metadataURL = typePrefix + "k8s.io.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata"

// Encode returns obj in the form in which it travels: Kubernetes' protobuf encoding in an
// Any. It fails if obj is not of a built-in kind ([Kinds]).
func Encode(obj Object) (*anypb.Any, error) {
	k := KindOf(obj)
	if k == nil {
		return nil, fmt.Errorf("client: %T is not a kind", obj)
	}
	return encode(k, obj)
}

func encode(k *Kind, obj Object) (*anypb.Any, error) {
	data, err := obj.Marshal()
	if err != nil {
		return nil, fmt.Errorf("client: encode %s %s/%s: %w", k.GVK.Kind, obj.GetNamespace(), obj.GetName(), err)
	}
	return &anypb.Any{TypeUrl: typePrefix + k.ProtoName, Value: data}, nil
}

// decode fills obj from an Any, which must hold the kind's message.
func decode(k *Kind, a *anypb.Any, obj Object) error {
	if a == nil {
		return fmt.Errorf("client: the server sent no %s", k.GVK.Kind)
	}
	if a.GetTypeUrl() != typePrefix+k.ProtoName {
		return fmt.Errorf("client: the server sent a %q where a %s was expected", a.GetTypeUrl(), k.ProtoName)
	}
	if err := obj.Unmarshal(a.GetValue()); err != nil {
		return fmt.Errorf("client: decode %s: %w", k.GVK.Kind, err)
	}
	return nil
}

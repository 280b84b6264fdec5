package grpc

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/envelope"
)

// view is how much of an object is returned.
type view uint8

const (
	whole view = iota
	withoutManagedFields
	metadataOnly
)

// frameFormats are the keys of the encodings of an event, one for each view, in its Frames.
var frameFormats = [...]string{
	whole:                "keelson.resource.v1.WatchResponse",
	withoutManagedFields: "keelson.resource.v1.WatchResponse without managedFields",
	metadataOnly:         "keelson.resource.v1.WatchResponse of metadata",
}

const metadataURL = typePrefix + "k8s.io.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata"

// viewOf returns the view that a request asks for. It refuses unknown ones.
func viewOf(v resourcev1.View) (view, error) {
	switch v {
	case resourcev1.View_VIEW_UNSPECIFIED:
		return whole, nil
	case resourcev1.View_VIEW_WITHOUT_MANAGED_FIELDS:
		return withoutManagedFields, nil
	case resourcev1.View_VIEW_METADATA:
		return metadataOnly, nil
	}
	return whole, apierrors.NewBadRequest(fmt.Sprintf("view %d is not known", v))
}

// of returns an encoded object in the view. The result may share bytes with raw.
func (v view) of(raw []byte) ([]byte, error) {
	switch v {
	case withoutManagedFields:
		return envelope.WithoutManagedFields(raw)
	case metadataOnly:
		return envelope.Metadata(raw)
	}
	return raw, nil
}

// url returns the type URL of the view of an object whose own is url.
func (v view) url(url string) string {
	if v == metadataOnly {
		return metadataURL
	}
	return url
}

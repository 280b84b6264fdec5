package grpc

import (
	"strings"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Writes tells the methods that begin a trace of their own when the caller
// brought none: those that change state.
func Writes(method string) bool {
	switch method {
	case resourcev1.ResourceService_Create_FullMethodName, resourcev1.ResourceService_Update_FullMethodName,
		resourcev1.ResourceService_Patch_FullMethodName, resourcev1.ResourceService_Apply_FullMethodName,
		resourcev1.ResourceService_Delete_FullMethodName, resourcev1.ResourceService_DeleteCollection_FullMethodName,
		resourcev1.ResourceService_Commit_FullMethodName:
		return true
	}
	return false
}

// Endless tells the streams that live until their client ends them: they end when
// the server stops.
func Endless(method string) bool {
	return Streams(method) || strings.HasPrefix(method, "/keelson.node.v1.TunnelService/")
}

// Streams tells the methods that get no span: streams that live as long as their
// client.
func Streams(method string) bool {
	return strings.HasSuffix(method, "/Watch")
}

package resourcequota

// NewController is New with another window.
var NewController = newController

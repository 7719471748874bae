package policy

// Demand is what one proxy wants of a limit of the whole mesh.
type Demand struct {
	Limit LimitRef
	Rate  float64 // requests a second, refused ones too
	Used  float64 // what the proxy's window holds
	Keys  []KeyDemand
}

// KeyDemand is the same of one key, by the key's hash.
type KeyDemand struct {
	Key        uint64
	Rate, Used float64
}

// Share is what one proxy may take of a limit of the whole mesh.
type Share struct {
	Limit    LimitRef
	Requests float64 // in the limit's window; with a key, of each key that is not in Keys
	Keys     []KeyShare
}

// KeyShare is the same of one key, by the key's hash.
type KeyShare struct {
	Key      uint64
	Requests float64
}

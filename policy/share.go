package policy

// Demand is what one proxy wants of a limit of the whole mesh.
type Demand struct {
	Limit LimitRef    `json:"limit"`
	Rate  float64     `json:"rate"` // requests a second, refused ones too
	Used  float64     `json:"used"` // what the proxy's window holds
	Keys  []KeyDemand `json:"keys,omitempty"`
	// Keepers is of how many proxies this is the sum; 0 for one proxy's own.
	Keepers int `json:"keepers,omitempty"`
}

// KeyDemand is the same of one key, by the key's hash.
type KeyDemand struct {
	Key  uint64  `json:"key,string"`
	Rate float64 `json:"rate"`
	Used float64 `json:"used"`
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

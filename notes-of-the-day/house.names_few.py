import re,glob,subprocess,os
def files(*pats):
    out=[]
    for p in pats: out+= [f for f in glob.glob(p,recursive=True) if os.path.isfile(f)]
    return out
def rx(fs,*pairs):
    for f in fs:
        try: s=o=open(f).read()
        except UnicodeDecodeError: continue
        for a,b in pairs: s=re.sub(a,b,s)
        if s!=o: open(f,'w').write(s)
# few -> decode
kf=files('src/ops/cuda/**/*.rs','kernels/**/*.cu','kernels/**/*.cuh','kernels/*.txt','tests/shim/**/*.cpp','tests/shim/**/*.hpp','docs/tuning.md','scripts/*')
rx(kf,(r'attend_few_bf16_(\d+) {3}',r'attend_decode_bf16_\1'),(r'attend_few_f(16|32)_(\d+) {3}',r'attend_decode_f\1_\2'),(r'attend_few',r'attend_decode'),(r'AttendFew','AttendDecode'),(r'ATTEND_FEW','ATTEND_DECODE'),(r'ATTEND_FLOAT_FEW','ATTEND_FLOAT_DECODE'))
rx(files('kernels/attend*.cuh','kernels/attend.cu'),(r'\bFEW\b','DECODE'))
rx(files('src/ops/cuda/attend/*.rs','src/ops/cuda/geometry.rs'),(r'\.few\b','.decode'),(r'\.many\b','.prefill'),(r'\bfew: (bool|usize|room|self|u64|Vec)',r'decode: \1'),(r'\bmany: (usize|self|Vec)',r'prefill: \1'),(r'\(few, items\)','(decode, items)'),(r'dim, few\b','dim, decode'),(r'\(values, few\)','(values, decode)'),(r'\(f32_rows, few\)','(f32_rows, decode)'),(r'match few\b','match decode'),(r'`few`','`decode`'))

rx(files('src/ops/cuda/attend/plan.rs'),(r'Work \{ many, segments','Work { prefill, segments'),(r'= many\.iter','= prefill.iter'))

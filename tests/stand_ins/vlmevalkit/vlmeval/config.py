supported_VLM = {} # name -> partial of a class
